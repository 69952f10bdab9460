//! Random policies: rules over facts a call has, some of which cannot be evaluated on every value.

use super::random::Random;

/// What a rule may look at, with the variables it binds.
const ATOMS: [(&str, &[&str]); 19] = [
    ("resource(\"tool.crm\")", &[]),
    ("resource($r)", &["r"]),
    ("action(\"read\")", &[]),
    ("action($a)", &["a"]),
    ("right($r, $a)", &["r", "a"]),
    ("caller(\"planner\")", &[]),
    ("caller($c)", &["c"]),
    ("label(\"crm\")", &[]),
    ("label($l)", &["l"]),
    ("integrity(\"untrusted\")", &[]),
    ("arg(\"/limit\", $n)", &["n"]),
    ("arg(\"/table\", $t)", &["t"]),
    ("arg($p, $v)", &["p", "v"]),
    ("effect(\"read\")", &[]),
    ("hour($h)", &["h"]),
    ("depth($d)", &["d"]),
    ("hop($i, $f, $c)", &["i", "f", "c"]),
    ("own($c)", &["c"]),
    ("far($f, $c)", &["f", "c"]),
];

/// Conditions, by the variables they are about.
const CONDITIONS: [(&str, &[&str]); 14] = [
    ("$n > 4", &["n"]),
    ("10 / $n > 1", &["n"]),
    ("$n * 9000000000000000000 > 1", &["n"]),
    ("$h < 12", &["h"]),
    ("$t.starts_with(\"cust\")", &["t"]),
    ("$t === \"orders\" || $t.length() < 4", &["t"]),
    ("$c !== \"mailer\"", &["c"]),
    ("!{\"planner\", \"writer\"}.contains($c)", &["c"]),
    ("$v === \"orders\"", &["v"]),
    ("$p.ends_with(\"e\") && $v === 5", &["p", "v"]),
    ("$d + 1 > $i", &["d", "i"]),
    ("$f !== $c", &["f", "c"]),
    ("$l !== \"hr\"", &["l"]),
    ("{\"crm\"}.union({\"hr\"}).contains($l)", &["l"]),
];

fn body(random: &mut Random, may_use_own: bool) -> String {
    let mut parts = Vec::new();
    let mut bound = Vec::new();
    for _ in 0..=random.below(3) {
        let (atom, variables) = random.one_of(&ATOMS);
        if !may_use_own && (atom.starts_with("own") || atom.starts_with("far")) {
            continue;
        }
        parts.push(atom);
        bound.extend_from_slice(variables);
    }
    if parts.is_empty() {
        parts.push("depth($d)");
    }
    let possible: Vec<&str> = CONDITIONS
        .iter()
        .filter(|(_, variables)| variables.iter().all(|name| bound.contains(name)))
        .map(|(condition, _)| *condition)
        .collect();
    for _ in 0..random.below(3) {
        if !possible.is_empty() {
            parts.push(random.one_of(&possible));
        }
    }
    parts.join(", ")
}

/// The rules of one policy. Not every one of them loads.
pub fn rules(random: &mut Random) -> String {
    let mut text = String::from(
        "far($f, $c) <- delegates($f, $c);\nfar($f, $x) <- far($f, $c), far($c, $x);\nown($c) <- caller($c);\n",
    );
    text += random.one_of(&[
        "may_delegate($f, $c) <- delegates($f, $c);\n",
        "may_delegate($f, $c) <- far($f, $c), $c !== \"mailer\";\n",
    ]);
    for _ in 0..random.below(3) {
        text += &format!("own($c) <- registered($c), {};\n", body(random, false));
    }
    for _ in 0..1 + random.below(3) {
        text += &format!("/// because\nallow if request(\"call\"), {}", body(random, true));
        if random.chance(30) {
            text += &format!(" or {}", body(random, true));
        }
        text += ";\n";
    }
    for _ in 0..random.below(4) {
        text += &format!("deny if {};\n", body(random, true));
    }
    text
}
