//! What changed between two texts, line by line.

/// Most lines of a text that are compared; the rest is not shown.
const LINES_MAX: usize = 2_000;

/// The lines that go, with `-`, and those that come, with `+`, in their order (longest common subsequence).
pub(crate) fn lines(from: &str, to: &str) -> Vec<String> {
    let from: Vec<&str> = from.lines().take(LINES_MAX).collect();
    let to: Vec<&str> = to.lines().take(LINES_MAX).collect();
    let width = to.len() + 1;
    // `common[i * width + j]`: how many lines the rests from `i` and `j` on have in common.
    let mut common = vec![0_u16; (from.len() + 1) * width];
    let at = |common: &[u16], i: usize, j: usize| common.get(i * width + j).copied().unwrap_or(0);
    for (i, old) in from.iter().enumerate().rev() {
        for (j, new) in to.iter().enumerate().rev() {
            let best = match old == new {
                true => at(&common, i + 1, j + 1) + 1,
                false => at(&common, i + 1, j).max(at(&common, i, j + 1)),
            };
            if let Some(cell) = common.get_mut(i * width + j) {
                *cell = best;
            }
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut diff = Vec::new();
    loop {
        match (from.get(i), to.get(j)) {
            (Some(old), Some(new)) if old == new => (i, j) = (i + 1, j + 1),
            (Some(old), new) if new.is_none() || at(&common, i + 1, j) >= at(&common, i, j + 1) => {
                diff.push(format!("- {old}"));
                i += 1;
            }
            (_, Some(new)) => {
                diff.push(format!("+ {new}"));
                j += 1;
            }
            _ => return diff,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_and_what_comes_in_order() {
        assert_eq!(lines("a\nb\nc", "a\nx\nc\nd"), ["- b", "+ x", "+ d"]);
        assert_eq!(lines("", "a"), ["+ a"]);
        assert_eq!(lines("a", ""), ["- a"]);
        assert!(lines("a\nb", "a\nb").is_empty());
    }
}
