//! What a verb shows: the answer on standard output, everything else on standard error. A closed pipe is no error.

use std::io::{self, IsTerminal, Write};

use crate::error::CtlError;

/// The two streams and what they can show.
pub(crate) struct Output {
    stdout: io::Stdout,
    /// Colours are wanted: a terminal, and `NO_COLOR` is not set (no-color.org).
    pub(crate) colours: bool,
    /// Standard error is a terminal: progress may be drawn.
    pub(crate) progress: bool,
}

impl Output {
    /// The process's own streams.
    pub(crate) fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            stdout: io::stdout(),
            colours,
            progress: io::stderr().is_terminal(),
        }
    }

    /// One line of the answer.
    pub(crate) fn line(&mut self, text: impl std::fmt::Display) -> Result<(), CtlError> {
        closed_is_fine(writeln!(self.stdout, "{text}"))
    }

    /// Bytes of the answer as they are, at once.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), CtlError> {
        closed_is_fine(self.stdout.write_all(bytes).and_then(|()| self.stdout.flush()))
    }

    /// A line beside the answer.
    pub(crate) fn note(&mut self, text: impl std::fmt::Display) {
        eprintln!("{text}");
    }

    /// A table: no borders, two spaces between columns, the last column uncut.
    pub(crate) fn table(&mut self, table: &Table) -> Result<(), CtlError> {
        for line in table.lines() {
            self.line(line)?;
        }
        Ok(())
    }
}

/// The reader of a pipe may leave when it has seen enough: the process then ends quietly, as `yes | head` does.
fn closed_is_fine(result: io::Result<()>) -> Result<(), CtlError> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(CtlError::Exited(0)),
        other => other.map_err(CtlError::io("failed to write to standard output")),
    }
}

/// Rows below a heading.
#[derive(Debug, Default)]
pub(crate) struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new<'a>(heading: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            heading: heading.into_iter().map(str::to_owned).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; an empty cell shows as `-`, a line break as a space, so that one object stays one line.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        let clean = |cell: String| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell.replace(['\n', '\r', '\t'], " ")
            }
        };
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// Width of each column, for rows that are printed as they come.
    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.heading.iter().map(|cell| cell.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }

    /// The heading (when there is one) and the rows as lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        let widths = self.widths();
        let heading =
            std::iter::once(&self.heading).filter(|heading| heading.iter().any(|cell| !cell.is_empty()));
        heading.chain(&self.rows).map(|row| align(row, &widths)).collect()
    }
}

fn align(row: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in row.iter().zip(widths) {
        line.push_str(cell);
        for _ in cell.chars().count()..width + 2 {
            line.push(' ');
        }
    }
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_empty_cells_show() {
        let mut table = Table::new(["NAME", "AGE", "REASON"]);
        table.row(vec!["a".into(), "3m".into(), String::new()]);
        table.row(vec!["longer".into(), String::new(), "two\nlines".into()]);
        assert_eq!(
            table.lines(),
            ["NAME    AGE  REASON", "a       3m   -", "longer  -    two lines"]
        );
    }
}
