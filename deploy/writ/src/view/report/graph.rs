//! Who handed what to whom, as an inline SVG: the user, then agents from left to right.

use super::html::escaped;
use crate::view::chain::{Agent, Chain};

const WIDTH: usize = 178;
const HEIGHT: usize = 52;
const ACROSS: usize = 318;
const DOWN: usize = 76;
/// Most characters of a name in a box; the whole name is its title.
const NAME_CHARS_MAX: usize = 22;
/// Most agents that are drawn; the table below has all of them.
const AGENTS_MAX: usize = 200;

struct Drawing {
    boxes: String,
    lines: String,
    rows: usize,
    columns: usize,
    drawn: usize,
}

/// The graph, or nothing if there is no agent.
pub(super) fn draw(chain: &Chain) -> String {
    if chain.root.agent.is_empty() {
        return String::new();
    }
    let mut drawing = Drawing { boxes: String::new(), lines: String::new(), rows: 0, columns: 1, drawn: 0 };
    let row = drawing.agent(&chain.root, 1);
    let user = chain.user.as_deref().unwrap_or("user unknown");
    // Behind it stands the issuer, which the table above has.
    let subject = user.rsplit_once(" (").map_or(user, |(subject, _)| subject);
    drawing.node(0, row, subject, "asked for it", "");
    drawing.line(0, row, row, "granted by the broker");
    let (width, height) = (drawing.columns * ACROSS + WIDTH + 4, drawing.rows * DOWN);
    format!(
        "<figure><svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" \
         aria-label=\"Who handed what to whom\">\n{}{}</svg></figure>\n",
        drawing.lines, drawing.boxes
    )
}

fn cut(text: &str) -> String {
    let short: String = text.chars().take(NAME_CHARS_MAX).collect();
    if short.len() < text.len() { format!("{short}…") } else { short }
}

fn did(agent: &Agent) -> String {
    let count = |verdict| agent.entries.iter().filter(|entry| entry.verdict == verdict).count();
    let counts = [(count("allow"), "allowed"), (count("deny"), "denied"), (count("hold"), "held")];
    let told: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    if told.is_empty() { "made no call".to_owned() } else { told.join(", ") }
}

impl Drawing {
    /// Draws an agent with all below it; gives its row.
    fn agent(&mut self, agent: &Agent, column: usize) -> usize {
        let row = self.rows;
        self.columns = self.columns.max(column);
        self.drawn += 1;
        self.node(column, row, &agent.agent, &did(agent), if agent.is_outsider { "out" } else { "" });
        if agent.delegates.is_empty() {
            self.rows += 1;
        }
        for delegate in &agent.delegates {
            if self.drawn >= AGENTS_MAX {
                self.rows += 1;
                break;
            }
            let below = self.agent(delegate, column + 1);
            let label = match (delegate.is_outsider, delegate.kept_back.len()) {
                (true, _) => "not handed to it".to_owned(),
                (false, 0) => "handed on".to_owned(),
                (false, 1) => "all but 1 right".to_owned(),
                (false, count) => format!("all but {count} rights"),
            };
            self.line(column, row, below, &label);
        }
        row
    }

    fn node(&mut self, column: usize, row: usize, name: &str, below: &str, class: &str) {
        let (x, y) = (column * ACROSS + 2, row * DOWN + 12);
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        self.boxes += &format!(
            "<g><title>{}</title><rect{class} x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"6\"/>\
             <text x=\"{tx}\" y=\"{ty}\">{}</text><text class=\"s\" x=\"{tx}\" y=\"{sy}\">{}</text></g>\n",
            escaped(name),
            escaped(&cut(name)),
            escaped(below),
            tx = x + 10,
            ty = y + 22,
            sy = y + 40
        );
    }

    /// From the right side of a box to the left side of one in the next column.
    fn line(&mut self, column: usize, from: usize, to: usize, label: &str) {
        let (x1, y1) = (column * ACROSS + 2 + WIDTH, from * DOWN + 12 + HEIGHT / 2);
        let (x2, y2) = ((column + 1) * ACROSS + 2, to * DOWN + 12 + HEIGHT / 2);
        let middle = x1 + 20;
        self.lines += &format!(
            "<path d=\"M{x1} {y1}H{middle}V{y2}H{x2}m-6 -4l6 4l-6 4\"/>\
             <text class=\"s\" x=\"{}\" y=\"{}\">{}</text>\n",
            middle + 4,
            y2.saturating_sub(6),
            escaped(label)
        );
    }
}
