//! `state ID`, `ps ID` and `list`: what there is. None of them takes a container's lock.

use std::io::{self, Write};
use std::process::Command;

use serde_json::Value;

use super::super::arguments::Arguments;
use super::super::state::{ids, look, owner};
use super::super::{Globals, OciError, refused};
use super::{print, step};

pub(super) fn state(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    let (record, status) = look(&globals.root, arguments.id()?)?;
    print(&record.describe(status));
    Ok(0)
}

enum Format {
    Table,
    Json,
}

fn format(arguments: &Arguments) -> Result<Format, OciError> {
    match arguments.value("format") {
        Some("json") => Ok(Format::Json),
        None | Some("table" | "") => Ok(Format::Table),
        Some(other) => Err(refused(format!(
            "invalid format option {other:?}: json and table are known"
        ))),
    }
}

pub(super) fn ps(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    let (record, _) = look(&globals.root, arguments.id()?)?;
    let pids = record.pids()?;
    match format(arguments)? {
        Format::Json => println!("{}", serde_json::json!(pids)),
        Format::Table => {
            let given = arguments.words.get(1..).unwrap_or_default();
            let default = ["-ef".to_owned()];
            let options = if given.is_empty() { &default[..] } else { given };
            let output = Command::new("ps")
                .args(options)
                .output()
                .map_err(step("run ps (--format json does without)"))?;
            if !output.status.success() {
                return Err(refused(format!(
                    "ps {}: {}",
                    options.join(" "),
                    String::from_utf8_lossy(&output.stderr).trim()
                )));
            }
            let text = String::from_utf8_lossy(&output.stdout);
            print_lines(&rows(&text, &pids)?)?;
        }
    }
    Ok(0)
}

/// The title of a table of ps and the rows of these processes.
fn rows(table: &str, pids: &[i32]) -> Result<String, OciError> {
    let mut lines = table.lines();
    let title = lines.next().unwrap_or_default();
    let column = title
        .split_whitespace()
        .position(|word| word == "PID")
        .ok_or_else(|| refused("ps shows no PID with these options"))?;
    let mut kept = format!("{title}\n");
    for line in lines {
        let pid = line
            .split_whitespace()
            .nth(column)
            .and_then(|word| word.parse().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    Ok(kept)
}

pub(super) fn list(globals: &Globals, arguments: &Arguments) -> Result<i32, OciError> {
    let mut found: Vec<Value> = Vec::new();
    let root = &globals.root;
    for id in ids(root)? {
        let one = look(root, &id).and_then(|(record, status)| {
            let mut one = record.describe(status);
            one["owner"] = owner(root, &id)?.into();
            Ok(one)
        });
        match one {
            Ok(one) => found.push(one),
            Err(OciError::NoContainer { .. }) => {} // deleted meanwhile, or no container's directory
            // One that is damaged does not hide the others.
            Err(error) => globals
                .log
                .warn(&format!("{id}: {}", crate::monitor::chain(&error))),
        }
    }
    match format(arguments)? {
        _ if arguments.is("quiet") => {
            let ids: String = found
                .iter()
                .map(|one| format!("{}\n", one["id"].as_str().unwrap_or_default()))
                .collect();
            print_lines(&ids)?;
        }
        Format::Json => println!("{}", Value::Array(found)),
        Format::Table => print_lines(&table(&found))?,
    }
    Ok(0)
}

fn table(found: &[Value]) -> String {
    let titles = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];
    let mut rows = vec![titles.map(str::to_owned)];
    for one in found {
        rows.push(
            ["id", "pid", "status", "bundle", "created", "owner"].map(|name| match &one[name] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            }),
        );
    }
    // As runc's: columns of at least 12 characters, three of them space.
    let mut widths = [12; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count() + 3);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:<width$}", width = *width));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A closed pipe is no error: whoever read it has seen enough.
fn print_lines(text: &str) -> Result<(), OciError> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(step("write the answer")(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_by_the_column_of_the_title() {
        let table = "UID   PID  PPID CMD\nroot   17     1 sleep 4\nroot    4    17 x\n";
        assert_eq!(
            rows(table, &[17]).unwrap(),
            "UID   PID  PPID CMD\nroot   17     1 sleep 4\n"
        );
        assert!(rows("A B\n", &[1]).is_err());
        assert!(rows("", &[1]).is_err());
    }
}
