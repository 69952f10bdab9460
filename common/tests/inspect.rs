//! Inspectors from outside: a whole exchange, and an answer to another question.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

use std::collections::BTreeSet;

use writ_common::{
    ids::{AgentId, InspectorId, Resource, TaskId, UserId},
    inspect::{
        Answer, Direction, Part, Question, Subject, batches,
        detect::{self, Detect},
        parts_of,
    },
    json::Value,
    time::Millis,
};

fn ask(answer: impl Fn(&str) -> String) -> Option<Answer> {
    let (user, agent) = (UserId::parse("i", "kim").unwrap(), AgentId::parse("mailer").unwrap());
    let (task, resource) = (TaskId::parse("t-1").unwrap(), Resource::parse("tool.mail").unwrap());
    let parts = [Part { path: "/body".to_owned(), text: "hello".to_owned() }];
    let batches = batches(&parts);
    let question = Question {
        id: "5e1f",
        direction: Direction::ToolArguments,
        subject: Subject { user: &user, agent: &agent, task: &task },
        resource: &resource,
        labels: &[],
        want: &[],
        batch: &batches[0],
        deadline: Millis(1_000),
        traceparent: None,
    };
    let answer = answer(&question.to_json());
    Answer::read(answer.as_bytes(), &InspectorId::parse("dlp").unwrap(), &question).ok().flatten()
}

fn passing(id: &str) -> String {
    format!(r#"{{"v":1,"id":"{id}","verdict":"pass","inspector":{{"name":"dlp","version":"1"}}}}"#)
}

#[test]
fn m04_answer_to_another_question_is_none() {
    let id_of =
        |question: &str| Value::parse(question).unwrap().get("id").unwrap().as_str().unwrap().to_owned();
    assert!(ask(|question| passing(&id_of(question))).is_some());
    assert_eq!(ask(|_| passing("5e20")), None);
}

#[test]
fn the_detectors_answer_about_a_whole_value() {
    let arguments = r#"{"body":"call +49 30 901820","card":4111111111111111,"to":["kim@example.com"]}"#;
    let parts = parts_of(&Value::parse(arguments).unwrap());
    let answer = detect::inspect(&InspectorId::parse("patterns").unwrap(), &parts, &Detect::ALL.into());
    let facts: BTreeSet<String> = answer.findings.iter().map(|finding| finding.fact().to_string()).collect();
    assert_eq!(
        facts.into_iter().collect::<Vec<_>>(),
        [
            r#"finding("/body", "phone", "patterns.e164", 40)"#,
            r#"finding("/card", "card", "patterns.luhn", 90)"#,
            r#"finding("/to/0", "email", "patterns.address", 30)"#,
        ]
    );
}
