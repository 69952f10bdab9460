//! Formatting changes how a policy is written, never what it says.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

mod support;

use support::{policies, random::Random};
use writ_common::policy::{format::format, parse};

/// The same statements with comments, empty lines and spaces where the grammar lets them stand.
fn disturbed(random: &mut Random, text: &str) -> String {
    let mut out = String::new();
    let mut is_text = false;
    for character in text.chars() {
        is_text ^= character == '"';
        let may_break = !is_text && matches!(character, ' ' | ',' | ';' | '(' | '\n');
        // A message ends with its line, and stands above a rule.
        let in_doc = out.rsplit('\n').next().unwrap_or("").contains("//");
        out.push(character);
        if !may_break || in_doc {
            continue;
        }
        match random.below(40) {
            0 => out.push_str(" /* a; \"b */ "),
            1 => out.push_str(" // c, \"d\n"),
            2 => out.push_str("\n\n\n"),
            3 => out.push_str("   \t"),
            4 => out.push_str("\r\n"),
            _ => {}
        }
    }
    out
}

/// Comments of a text, without the spaces around them.
fn comments(text: &str) -> (usize, usize) {
    (text.matches("/* a; \"b */").count(), text.matches("// c, \"d").count())
}

#[test]
fn formatting_keeps_the_meaning_and_the_comments_and_settles_at_once() {
    for seed in 0..600 {
        let mut random = Random(seed);
        let text = policies::rules(&mut random);
        let text = disturbed(&mut random, &text);
        let (before, findings) = parse("p", &text);
        assert!(!findings.has_errors(), "seed {seed}: {findings}\n{text}");
        let formatted =
            format("p", &text).unwrap_or_else(|findings| panic!("seed {seed}: {findings}\n{text}"));
        assert_eq!(parse("p", &formatted).0, before, "seed {seed}\n{text}\n{formatted}");
        assert_eq!(comments(&formatted), comments(&text), "seed {seed}\n{text}\n{formatted}");
        assert_eq!(format("p", &formatted).unwrap(), formatted, "seed {seed}\n{text}");
    }
}
