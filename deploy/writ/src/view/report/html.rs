//! HTML that nothing from a record can break out of.

use writ_common::visible::visible;

/// The style of the page: one column, light or dark as the reader's system is, black on white on paper.
pub(super) const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#59636e;--line:#d1d9e0;--paper:#fff;--soft:#f6f8fa;--good:#1a7f37;\
--bad:#b42318;--wait:#9a6700}\
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--dim:#9198a1;--line:#3d444d;--paper:#0d1117;--soft:#151b23;\
--good:#3fb950;--bad:#ff7b72;--wait:#d29922}}\
*{box-sizing:border-box}\
body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:62rem;font:15px/1.5 system-ui,sans-serif;color:var(--ink);\
background:var(--paper)}\
h1{font-size:1.6rem;line-height:1.2;margin:0 0 .5rem}h2{font-size:1.15rem;margin:2.2rem 0 .5rem;\
border-bottom:1px solid var(--line);padding-bottom:.25rem}\
p{margin:.4rem 0}.dim,small{color:var(--dim)}\
code,.mono{font-family:ui-monospace,Consolas,monospace;font-size:.86em;overflow-wrap:anywhere}\
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--soft);padding:.6rem .8rem;border:1px solid var(--line);\
font-size:.82rem;margin:.3rem 0}\
table{border-collapse:collapse;width:100%;font-size:.9rem}\
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem .35rem 0;border-bottom:1px solid var(--line);\
overflow-wrap:anywhere}th{font-weight:600}thead th{color:var(--dim);font-size:.8rem}td.t{white-space:nowrap}\
.facts th{width:11rem;color:var(--dim);font-weight:400}\
.v{font-weight:700;font-size:.8rem;white-space:nowrap}.good{color:var(--good)}.bad{color:var(--bad)}.wait{color:var(--wait)}\
.box{border:1px solid var(--line);border-left:4px solid var(--dim);background:var(--soft);padding:.5rem .8rem;margin:.5rem 0}\
.box.bad{border-left-color:var(--bad);color:inherit}.box.good{border-left-color:var(--good);color:inherit}\
.box.wait{border-left-color:var(--wait);color:inherit}\
figure{margin:.8rem 0}svg{max-width:100%;height:auto}svg text{fill:var(--ink);font:13px system-ui,sans-serif}svg .s{fill:var(--dim);\
font-size:11px}svg rect{fill:var(--soft);stroke:var(--line)}svg rect.out{stroke:var(--bad);stroke-dasharray:4 3}\
svg path{fill:none;stroke:var(--dim)}\
@media print{:root{color-scheme:light;--ink:#000;--dim:#444;--line:#bbb;--paper:#fff;--soft:#fff;--good:#0a5c25;\
--bad:#8f1d14;--wait:#6b4700}body{padding:0;max-width:none;font-size:10.5pt}h2{break-after:avoid}\
tr,.box,figure{break-inside:avoid}thead{display:table-header-group}}\
@page{size:A4;margin:16mm 14mm}";

/// Text as HTML: what is not seen is shown, and nothing of it is markup.
pub(super) fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in visible(text).chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            other => html.push(other),
        }
    }
    html
}

/// Text with lines: each of them escaped.
pub(super) fn escaped_lines(text: &str) -> String {
    text.lines().map(escaped).collect::<Vec<_>>().join("\n")
}

/// A piece of text in code letters.
pub(super) fn code(text: &str) -> String {
    format!("<code>{}</code>", escaped(text))
}

/// A heading with its table; `rows` are cells of HTML. Without rows, `none` is said instead.
pub(super) fn section(title: &str, lead: &str, columns: &[&str], rows: &[Vec<String>], none: &str) -> String {
    let mut html = format!("<section><h2>{}</h2>\n", escaped(title));
    if !lead.is_empty() {
        html += &format!("<p class=\"dim\">{}</p>\n", escaped(lead));
    }
    if rows.is_empty() {
        return html + &format!("<p>{}</p></section>\n", escaped(none));
    }
    html += "<table><thead><tr>";
    for column in columns {
        html += &format!("<th scope=\"col\">{}</th>", escaped(column));
    }
    html += "</tr></thead><tbody>\n";
    for row in rows {
        let cells: String = row
            .iter()
            .enumerate()
            .map(|(at, cell)| format!("<td{}>{cell}</td>", if at == 0 { " class=\"t\"" } else { "" }))
            .collect();
        html += &format!("<tr>{cells}</tr>\n");
    }
    html + "</tbody></table></section>\n"
}

/// A table of names and values; values are HTML.
pub(super) fn facts(rows: &[(&str, String)]) -> String {
    let rows = rows.iter().filter(|(_, value)| !value.is_empty());
    let rows: String = rows
        .map(|(name, value)| format!("<tr><th scope=\"row\">{}</th><td>{value}</td></tr>\n", escaped(name)))
        .collect();
    format!("<table class=\"facts\"><tbody>\n{rows}</tbody></table>\n")
}
