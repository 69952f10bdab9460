//! What counts as named, and above all what does not.

use proptest::prelude::*;

use super::*;

fn entity(name: &str) -> EntityType {
    EntityType::parse(name).unwrap()
}

fn domain(name: &str) -> FlowDomain {
    FlowDomain::parse(&format!("p0.{name}")).unwrap()
}

fn form(name: &str, value: &str) -> Option<String> {
    canonical_text(&entity(name), value)
}

#[track_caller]
fn same(name: &str, values: &[&str]) {
    let forms: Vec<_> = values.iter().map(|value| form(name, value)).collect();
    assert!(forms.iter().all(|form| form.is_some() && *form == forms[0]), "{values:?} are {forms:?}");
}

#[track_caller]
fn mention(instruction: &str, name: &str, value: &str) -> Mention {
    form(name, value).map_or(Mention::None, |form| Instruction::new(instruction).names(&entity(name), &form))
}

#[test]
fn one_thing_has_one_form() {
    same("email", &["bob@corp.example", "Bob@Corp.EXAMPLE", "bob@corp.example."]);
    same("host", &["bücher.example", "BÜCHER.example", "xn--bcher-kva.example", "xn--bcher-kva.example."]);
    same("url", &["https://corp.example", "HTTPS://Corp.Example:443/", "corp.example"]);
    same("url", &["http://[2001:db8::1]:80/a", "http://[2001:DB8:0::1]/a"]);
    same("iban", &["DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "de89-3704-0044-0532-0130-00"]);
    same("phone", &["+49 30 123456", "0049 (30) 123-456"]);
    same("amount", &["1,050.00", "1050", "£1,050", "1050.0"]);
    same("date", &["2026-05-15", "May 15th, 2026", "15 May 2026"]);
    same("date", &["2026-05-15 10:00", "2026-05-15T10:00:00"]);
    same("name", &["Ärzte Straße", "ärzte straße"]);
    assert_eq!(canonical(&entity("amount"), &Value::parse("98.70").unwrap()), form("amount", "98.7"));
    assert_eq!(canonical(&entity("file_id"), &Value::from(7)), form("file_id", "7"));
}

#[test]
fn other_things_have_other_forms() {
    for (name, a, b) in [
        ("email", "bob@corp.example", "bob@corp.example.evil.example"),
        ("email", "bob@corp.example", "bob+x@corp.example"),
        ("url", "https://corp.example/a", "https://corp.example/A"),
        ("url", "https://corp.example/a", "http://corp.example/a"),
        ("url", "https://corp.example/a", "https://corp.example/a?to=evil.example"),
        ("url", "https://corp.example", "https://corp.example:8443"),
        ("iban", "DE89370400440532013000", "DE89370400440532013001"),
        ("file_id", "a1", "A1"),
        ("secret", "Hunter2", "hunter2"),
        ("amount", "10", "100"),
        ("date", "2026-05-15", "2026-05-15 10:00"),
    ] {
        assert!(form(name, a).is_some() && form(name, a) != form(name, b), "{name}: {a} and {b}");
    }
}

#[test]
fn a05_look_alikes_have_no_form() {
    for (name, value) in [
        ("email", "b\u{043e}b@corp.example"),
        ("email", "bob@c\u{043e}rp.example"),
        ("email", "bob\u{200b}@corp.example"),
        ("email", "bob@corp.example\u{202e}"),
        ("host", "\u{ff43}orp.example"),
        ("name", "Zoe\u{308}"),
        ("name", "Alice\u{e0041}"),
        ("file_id", "\u{ff17}"),
        ("name", "of\u{fb01}ce"),
        ("name", "Alice\tSmith"),
    ] {
        assert_eq!(form(name, value), None, "{name}: {value:?}");
    }
    // A whole word of another alphabet is a name like any other, and another one.
    assert_ne!(form("name", "\u{0430}\u{0441}\u{0435}"), form("name", "ace"));
}

#[test]
fn f09_addresses_that_say_two_things_have_no_form() {
    for value in [
        "evil@x?good@y",
        "victim@good.example@evil.example",
        "bob@corp.example,eve@evil.example",
        "bob@corp.example eve@evil.example",
        "Bob <eve@evil.example>",
        "\"bob@corp.example\"@evil.example",
        "bob@[192.0.2.1]",
        "bob@localhost",
        "bob@corp..example",
        ".bob@corp.example",
        "@corp.example",
        "bob@",
        "bob@corp.example\r\nBcc: eve@evil.example",
    ] {
        assert_eq!(form("email", value), None, "{value:?}");
    }
    for value in [
        "https://corp.example@evil.example/",
        "https://corp.example:secret@evil.example/",
        "https://evil.example\\@corp.example/",
        "https://corp.example\\.evil.example",
        "https:/corp.example",
        "https:corp.example",
        "//corp.example",
        "https://corp.example/a/../b",
        "https://corp.example/a/%2E%2e/b",
        "https://corp.example/a b",
        "https://corp.example:99999/",
        "https://corp.example:/",
        "https://0x7f.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://010.0.0.1/",
        "https:///path",
        "javascript:alert(1)",
    ] {
        assert_eq!(form("url", value), None, "{value:?}");
    }
    for value in ["../secret", "a//b", "a\\b", "./a", "a/./b", "~/a", " a"] {
        assert_eq!(form("path", value), None, "{value:?}");
    }
    for value in ["1.050,00", "1,05", "19.5%", "ten", "1e3x", "--1"] {
        assert_eq!(form("amount", value), None, "{value:?}");
    }
    for value in ["05/06/2026", "2026-13-01", "2026-05-15 25:00", "May 15th"] {
        assert_eq!(form("date", value), None, "{value:?}");
    }
    assert_eq!(form("name", &"x".repeat(VALUE_BYTES_MAX + 1)), None);
    assert_eq!(canonical(&entity("email"), &Value::parse(r#"["bob@corp.example"]"#).unwrap()), None);
}

#[test]
fn an_instruction_names_what_it_holds_whole() {
    let text = "Mail 'bob@corp.example' (not Bob's wife), then pay DE89 3704 0044 0532 0130 00 the rent of $1,050.00.";
    assert_eq!(mention(text, "email", "Bob@corp.example"), Mention::Only);
    assert_eq!(mention(text, "iban", "DE89370400440532013000"), Mention::Only);
    assert_eq!(mention(text, "amount", "1050"), Mention::OneOfSeveral);
    assert_eq!(mention("Pay 98.70 to Apple.", "amount", "98.7"), Mention::Only);
    assert_eq!(mention("Read 'bill.txt' for me", "path", "bill.txt"), Mention::Only);
    assert_eq!(mention("Visit http://Corp.example/a.", "url", "http://corp.example/a"), Mention::Only);
    assert_eq!(mention("Visit www.corp.example.", "host", "www.corp.example"), Mention::Only);
    assert_eq!(mention("Call +49 30 123456 now", "phone", "+4930123456"), Mention::Only);
    assert_eq!(mention("On May 15th, 2026 at 10:00", "date", "2026-05-15"), Mention::Only);
    assert_eq!(mention("set the password to '1j1l-2k3j'.", "secret", "1j1l-2k3j"), Mention::Only);
    assert_eq!(
        mention("Tell bob@a.example and eve@b.example", "email", "eve@b.example"),
        Mention::OneOfSeveral
    );
}

#[test]
fn f09_no_part_of_what_is_named_is_named() {
    for (text, name, value) in [
        ("Mail bob@corp.example.evil.example", "email", "bob@corp.example"),
        ("Mail evil.bob@corp.example", "email", "bob@corp.example"),
        ("Mail b\u{043e}b@corp.example", "email", "bob@corp.example"),
        ("Visit https://corp.example/login?next=https://evil.example/", "url", "https://evil.example/"),
        ("Visit https://user@corp.example/", "url", "https://corp.example/"),
        ("Read bill.txt.exe", "path", "bill.txt"),
        ("Read old-bill.txt", "path", "bill.txt"),
        ("Read 'my bill.txt'", "path", "bill.txt"),
        ("The title is 'Plan for the project'.", "title", "project"),
        ("Book the Hilton Garden Inn", "name", "Hilton"),
        ("Please book the Hilton Garden Inn", "name", "Garden Inn"),
        ("Use token abc-def", "secret", "abc"),
        ("Book 5 hours", "event_id", "5"),
        ("Pay 19.5% more", "amount", "19.5"),
        ("Pay 100", "amount", "10"),
        ("Pay DE89370400440532013000", "iban", "DE8937040044053"),
        ("Pay DE89 3704 0044 0532 0130 00", "iban", "DE893704004405320130"),
    ] {
        assert_eq!(mention(text, name, value), Mention::None, "{text}: {value}");
    }
}

#[test]
fn words_that_could_mean_anything_do_not_count_alone() {
    assert_eq!(mention("post it in the random channel", "channel", "random"), Mention::OneOfSeveral);
    assert_eq!(mention("post it in #random", "channel", "random"), Mention::OneOfSeveral);
    assert_eq!(mention("post it in 'random'", "channel", "random"), Mention::Only);
    assert_eq!(mention("Invite Dora to the team", "user", "Dora"), Mention::OneOfSeveral);
    assert_eq!(mention("Send Alice's note to Bob", "user", "Bob"), Mention::OneOfSeveral);
    assert_eq!(mention("send it to Bob", "user", "Bob"), Mention::Only);
    assert_eq!(mention("delete file 5 please", "file_id", "5"), Mention::Only);
    assert_eq!(mention("delete the file with id '5'", "file_id", "5"), Mention::Only);
}

#[test]
fn f09_a_value_that_holds_another_is_one_of_several() {
    for (text, name, value) in [
        ("delete the files '5' and '15'", "file", "15"),
        ("look after 'cust' and 'customers'", "table", "customers"),
        ("read 'a1' and then 'A1'", "record", "A1"),
        ("Ask Rob, not Robert", "user", "Robert"),
    ] {
        assert_eq!(mention(text, name, value), Mention::OneOfSeveral, "{text}: {value}");
    }
    // The words of a name are not others.
    assert_eq!(mention("book the Garden Inn", "hotel", "Garden Inn"), Mention::Only);
    assert_eq!(mention("name it 'Plan' or 'plan'", "title", "plan"), Mention::Only);
}

#[test]
fn too_long_an_instruction_names_nothing() {
    let text = format!("mail bob@corp.example {}", "x".repeat(INSTRUCTION_BYTES_MAX));
    assert_eq!(mention(&text, "email", "bob@corp.example"), Mention::None);
}

#[test]
fn sources_count_only_where_the_contract_says() {
    let bob = Value::from("Bob@corp.example");
    let (email, home, other) = (entity("email"), domain("t-1"), domain("t-2"));
    let instruction = Instruction::new("Mail bob@corp.example and eve@corp.example");
    let none: [&str; 0] = [];
    let contacts =
        |outsiders| Directory::new("contacts", email.clone(), ["BOB@corp.example"], none, outsiders).unwrap();
    let trusted = [contacts(false)];
    let mut results = ResultSources::default();
    results.insert(&home, &email, &bob);
    let kinds = |kind| SourceKinds::from_iter([kind]);

    let all = Sources { instruction: Some(&instruction), directories: &trusted, results: Some(&results) };
    let find = |sources: &Sources<'_>, allowed: &SourceKinds| {
        sources.find(&home, &email, &bob, allowed).map(|source| source.to_string())
    };
    assert_eq!(find(&all, &kinds(SourceKind::Instruction)), None, "two candidates");
    assert_eq!(find(&all, &kinds(SourceKind::InstructionAny)).as_deref(), Some("instruction"));
    assert_eq!(find(&all, &kinds(SourceKind::Directory)).as_deref(), Some("directory:contacts"));
    assert_eq!(find(&all, &kinds(SourceKind::Result)).as_deref(), Some("result"));
    assert_eq!(find(&all, &SourceKinds::default()).as_deref(), Some("directory:contacts"));
    assert_eq!(find(&Sources::default(), &SourceKinds::default()), None);

    // What one domain has read proves nothing in another, nor as another type.
    let only_results = Sources { results: Some(&results), ..Sources::default() };
    assert_eq!(only_results.find(&other, &email, &bob, &SourceKinds::default()), None);
    assert_eq!(only_results.find(&home, &entity("user"), &bob, &SourceKinds::default()), None);
}

#[test]
fn m11_a_directory_outsiders_write_is_no_source() {
    let email = entity("email");
    let none: [&str; 0] = [];
    let contacts = [Directory::new("contacts", email.clone(), ["eve@evil.example"], none, true).unwrap()];
    let sources = Sources { directories: &contacts, ..Sources::default() };
    let eve = Value::from("eve@evil.example");
    assert_eq!(sources.find(&domain("t"), &email, &eve, &SourceKinds::default()), None);
    assert!(contacts[0].lists(&email, "eve@evil.example"), "people still see that it is there");
}

#[test]
fn a_directory_s_domain_covers_itself_and_nothing_below() {
    let none: [&str; 0] = [];
    let own = |name: &str| Directory::new("own", entity(name), none, ["Corp.example"], false).unwrap();
    let covers =
        |name: &str, value: &str| form(name, value).is_some_and(|form| own(name).names(&entity(name), &form));
    assert!(covers("email", "new.hire@corp.EXAMPLE"));
    assert!(covers("url", "https://corp.example:8443/x"));
    assert!(covers("host", "corp.example"));
    for (name, value) in [
        ("email", "bob@corp.example.evil.example"),
        ("email", "bob@evilcorp.example"),
        ("email", "bob@mail.corp.example"),
        ("url", "https://evil.example/corp.example"),
        ("url", "https://evil.example/?@corp.example"),
        ("url", "https://evil.example#@corp.example"),
        ("url", "https://corp.example@evil.example/"),
    ] {
        assert!(!covers(name, value), "{value}");
    }
    assert!(matches!(
        Directory::new("own", entity("email"), ["nobody"], none, false),
        Err(InvalidDirectory::NoEntity { .. })
    ));
    assert!(matches!(
        Directory::new("own", entity("email"), none, ["not a host"], false),
        Err(InvalidDirectory::NoDomain { .. })
    ));
    assert!(matches!(
        Directory::new("Own", entity("email"), none, none, false),
        Err(InvalidDirectory::Name(_))
    ));
}

#[test]
fn what_a_domain_remembers_is_bounded_and_readable_again() {
    let (home, id) = (domain("t"), entity("file_id"));
    let many = |range: std::ops::Range<i64>| {
        let mut sources = ResultSources::default();
        range.for_each(|value| sources.insert(&home, &id, &Value::from(value)));
        sources
    };
    let (a, b) = (many(0..800), many(800..1_600));
    assert_eq!(a.join(&b), b.join(&a));
    assert_eq!(a.join(&b).len(), RESULT_SOURCES_MAX);
    let read = |sources: &ResultSources| {
        crate::codec::from_canonical::<ResultSources>("sources", &crate::codec::to_bytes(sources))
    };
    assert_eq!(read(&a), Ok(a.clone()));
    let mut nothing = ResultSources::default();
    nothing.insert(&home, &entity("email"), &Value::from("no mailbox"));
    assert!(nothing.is_empty());
}

const TYPES: [&str; 11] =
    ["amount", "date", "email", "event_id", "host", "iban", "name", "path", "phone", "secret", "url"];

fn address() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9._%+-]{1,12}@[a-zA-Z0-9.-]{1,12}\\.(com|Example|io)"
}

proptest! {
    #[test]
    fn canonical_forms_are_fixed_points(name in proptest::sample::select(TYPES.as_slice()), value in "\\PC{0,40}") {
        if let Some(once) = form(name, &value) {
            prop_assert_eq!(form(name, &once), Some(once.clone()));
        }
    }

    #[test]
    fn any_text_can_be_read(text in "\\PC{0,200}", value in "\\PC{1,20}") {
        let instruction = Instruction::new(&text);
        for name in TYPES {
            if let Some(form) = form(name, &value) {
                let _ = instruction.names(&entity(name), &form);
            }
        }
    }

    #[test]
    fn f09_an_address_is_named_only_as_itself(
        ours in address(), before in "[a-z0-9.@_?=/-]{0,6}", after in "[a-z0-9.@_?=/-]{0,6}",
    ) {
        // Whatever is glued to an address, the result is named as the same address or not at all.
        let glued = format!("{before}{ours}{after}");
        let text = format!("please write to {ours} today");
        if mention(&text, "email", &glued) != Mention::None {
            prop_assert_eq!(form("email", &glued), form("email", &ours));
        }
        // And the other way round: naming the glued one names not ours.
        let text = format!("please write to {glued} today");
        if mention(&text, "email", &ours) != Mention::None {
            let stripped = glued.trim_end_matches(['.', '?']);
            prop_assert_eq!(form("email", stripped), form("email", &ours));
        }
    }

    #[test]
    fn f09_a_word_is_named_only_whole(word in "[a-z0-9-]{3,10}", glue in "[a-zA-Z0-9_/@.-]{1,4}") {
        let alone = format!("use {word} for it");
        prop_assert_ne!(mention(&alone, "secret", &word), Mention::None);
        let longer = format!("use {word}{glue}x for it");
        prop_assert_eq!(mention(&longer, "secret", &word), Mention::None);
        let longer = format!("use x{glue}{word} for it");
        prop_assert_eq!(mention(&longer, "secret", &word), Mention::None);
    }

    #[test]
    fn capitals_and_spacing_do_not_matter_where_they_mean_nothing(ours in address()) {
        let text = format!("Write to {}.", ours.to_uppercase());
        if form("email", &ours).is_some() {
            prop_assert_eq!(mention(&text, "email", &ours.to_lowercase()), Mention::Only);
        }
    }
}
