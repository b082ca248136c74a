//! Two texts as a unified diff, as `diff -u` prints it.

/// Lines around a change.
const CONTEXT: usize = 3;
/// Changed lines up to which the shortest way from one text to the other is looked for: it costs their square. Texts that
/// differ in more are shown one after the other.
const DISTANCE_MAX: usize = 2_000;

/// What happens to a line; the line is the old text's, of an added one the new text's.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Edit<'a> {
    Keep(&'a str),
    Remove(&'a str),
    Add(&'a str),
}

/// The diff with these names above it; empty when the texts are equal.
pub(crate) fn diff(old_name: &str, new_name: &str, old: &str, new: &str) -> String {
    let edits = edits(&old.lines().collect::<Vec<_>>(), &new.lines().collect::<Vec<_>>());
    let hunks = hunks(&edits);
    if hunks.is_empty() {
        return String::new();
    }
    let mut text = format!("--- {old_name}\n+++ {new_name}\n");
    for (start, end) in hunks {
        text.push_str(&hunk(&edits, start, end));
    }
    text
}

/// Ranges of edits that are shown together: changes with the lines around them.
fn hunks(edits: &[Edit<'_>]) -> Vec<(usize, usize)> {
    let mut hunks: Vec<(usize, usize)> = Vec::new();
    let changed = edits
        .iter()
        .enumerate()
        .filter(|(_, edit)| !matches!(edit, Edit::Keep(_)));
    for (place, _) in changed {
        let (start, end) = (
            place.saturating_sub(CONTEXT),
            (place + CONTEXT + 1).min(edits.len()),
        );
        match hunks.last_mut() {
            Some((_, last)) if *last >= start => *last = end,
            _ => hunks.push((start, end)),
        }
    }
    hunks
}

fn hunk(edits: &[Edit<'_>], start: usize, end: usize) -> String {
    let (before, shown) = (&edits[..start], &edits[start..end]);
    let old = |edits: &[Edit<'_>]| edits.iter().filter(|edit| !matches!(edit, Edit::Add(_))).count();
    let new = |edits: &[Edit<'_>]| {
        edits
            .iter()
            .filter(|edit| !matches!(edit, Edit::Remove(_)))
            .count()
    };
    // A side without lines is named by the line before it.
    let range = |before: usize, count: usize| match count {
        0 => format!("{before},0"),
        1 => format!("{}", before + 1),
        count => format!("{},{count}", before + 1),
    };
    let mut text = format!(
        "@@ -{} +{} @@\n",
        range(old(before), old(shown)),
        range(new(before), new(shown))
    );
    for edit in shown {
        let (sign, line) = match edit {
            Edit::Keep(line) => (' ', line),
            Edit::Remove(line) => ('-', line),
            Edit::Add(line) => ('+', line),
        };
        text.push(sign);
        text.push_str(line);
        text.push('\n');
    }
    text
}

fn edits<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Edit<'a>> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (&old[head..], &new[head..]);
    let tail = old_rest
        .iter()
        .rev()
        .zip(new_rest.iter().rev())
        .take_while(|(a, b)| a == b)
        .count();
    let (old_mid, old_tail) = old_rest.split_at(old_rest.len() - tail);
    let (new_mid, _) = new_rest.split_at(new_rest.len() - tail);
    let mut edits: Vec<Edit<'a>> = old[..head].iter().map(|line| Edit::Keep(line)).collect();
    edits.extend(shortest(old_mid, new_mid));
    edits.extend(old_tail.iter().map(|line| Edit::Keep(line)));
    edits
}

/// Myers, "An O(ND) Difference Algorithm and Its Variations" (1986): of each distance the furthest place on each diagonal.
fn shortest<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Edit<'a>> {
    let (n, m) = (old.len(), new.len());
    let bound = (n + m).min(DISTANCE_MAX);
    let offset = bound + 1;
    // furthest[offset + k]: the furthest line of `old` on the diagonal where old - new = k.
    let mut furthest = vec![0_usize; 2 * offset + 1];
    let mut trace: Vec<Vec<usize>> = Vec::new();
    for distance in 0..=bound {
        trace.push(furthest[offset - distance..=offset + distance].to_vec());
        for diagonal in (offset - distance..=offset + distance).step_by(2) {
            let (left, right) = (furthest[diagonal - 1], furthest[diagonal + 1]);
            let down = diagonal == offset - distance || (diagonal != offset + distance && left < right);
            let mut x = if down { right } else { left + 1 };
            while x < n && x + offset >= diagonal && old.get(x) == new.get(x + offset - diagonal) {
                x += 1;
            }
            furthest[diagonal] = x;
            if x >= n && x + offset >= diagonal + m {
                return walk_back(old, new, &trace, offset);
            }
        }
    }
    let removed = old.iter().map(|line| Edit::Remove(line));
    removed.chain(new.iter().map(|line| Edit::Add(line))).collect()
}

fn walk_back<'a>(old: &[&'a str], new: &[&'a str], trace: &[Vec<usize>], offset: usize) -> Vec<Edit<'a>> {
    let (mut x, mut y) = (old.len(), new.len());
    let mut edits = Vec::new();
    for (distance, furthest) in trace.iter().enumerate().rev() {
        // `furthest` begins at the diagonal offset - distance.
        let at = |diagonal: usize| {
            let place = (diagonal + distance).checked_sub(offset);
            place.and_then(|place| furthest.get(place)).copied().unwrap_or(0)
        };
        let diagonal = x + offset - y;
        let down = diagonal == offset - distance
            || (diagonal != offset + distance && at(diagonal - 1) < at(diagonal + 1));
        let from = if down { diagonal + 1 } else { diagonal - 1 };
        let from_x = at(from);
        let from_y = (from_x + offset).saturating_sub(from);
        let (stop_x, stop_y) = match distance {
            0 => (0, 0),
            _ if down => (from_x, from_y + 1),
            _ => (from_x + 1, from_y),
        };
        while x > stop_x && y > stop_y {
            x -= 1;
            y -= 1;
            edits.push(Edit::Keep(old[x]));
        }
        if distance > 0 {
            if down {
                y -= 1;
                edits.push(Edit::Add(new[y]));
            } else {
                x -= 1;
                edits.push(Edit::Remove(old[x]));
            }
        }
    }
    edits.reverse();
    edits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_change_is_shown_with_the_lines_around_it() {
        let old = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n";
        let new = "a\nb\nc\nd\nE\nf\ng\nh\ni\nj\nk\n";
        let expected = "--- old\n+++ new\n@@ -2,9 +2,10 @@\n b\n c\n d\n-e\n+E\n f\n g\n h\n i\n j\n+k\n";
        assert_eq!(diff("old", "new", old, new), expected);
        assert_eq!(diff("old", "new", old, old), "");
        assert_eq!(
            diff("old", "new", "", "a\n"),
            "--- old\n+++ new\n@@ -0,0 +1 @@\n+a\n"
        );
    }

    #[test]
    fn what_differs_too_much_is_shown_one_after_the_other() {
        let lines = |name: &str| {
            (0..2_000)
                .map(|number| format!("{name}{number}\n"))
                .collect::<String>()
        };
        let text = diff("old", "new", &lines("a"), &lines("b"));
        assert_eq!(text.lines().filter(|line| line.starts_with("-a")).count(), 2_000);
        assert_eq!(text.lines().filter(|line| line.starts_with("+b")).count(), 2_000);
    }

    fn longest_common(a: &[&str], b: &[&str]) -> usize {
        let mut row = vec![0; b.len() + 1];
        for x in a {
            let mut corner = 0;
            for (place, y) in b.iter().enumerate() {
                let above = row[place + 1];
                row[place + 1] = if x == y { corner + 1 } else { above.max(row[place]) };
                corner = above;
            }
        }
        row[b.len()]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// The edits lead from one text to the other, and no shorter ones do.
        #[test]
        fn the_edits_are_right_and_few(old in prop::collection::vec("[abc]", 0..12), new in prop::collection::vec("[abc]", 0..12)) {
            let old: Vec<&str> = old.iter().map(String::as_str).collect();
            let new: Vec<&str> = new.iter().map(String::as_str).collect();
            let edits = edits(&old, &new);
            let of = |added: bool| -> Vec<&str> {
                edits.iter().filter_map(|edit| match edit {
                    Edit::Keep(line) => Some(*line),
                    Edit::Remove(line) => (!added).then_some(*line),
                    Edit::Add(line) => added.then_some(*line),
                }).collect()
            };
            prop_assert_eq!(&of(false), &old);
            prop_assert_eq!(&of(true), &new);
            let kept = edits.iter().filter(|edit| matches!(edit, Edit::Keep(_))).count();
            prop_assert_eq!(kept, longest_common(&old, &new));
        }
    }
}
