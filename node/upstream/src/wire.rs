//! What comes over the wire, before anything else sees it.
//!
//! rmcp reads messages into its own types, and numbers into floats. Pins and results have to be exact, so every
//! message is read here first: strictly, with numbers as text. What a call or a listing was answered is kept aside
//! under its id, and rmcp is handed the rest of the message.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rmcp::model::{ClientJsonRpcMessage, ClientRequest, JsonRpcMessage};
use tokio::sync::watch;
use writ_common::json::{DEPTH_MAX, Number, Value};

/// Largest message of a server, in bytes: a page of a listing, or a result on its way to being refused.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most messages in a second that answer nothing that was asked.
const UNASKED_PER_SECOND_MAX: u32 = 1_000;

/// Why a server is not listened to any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A message beyond [`MESSAGE_BYTES_MAX`].
    TooLarge,
    /// More messages than anybody asked for.
    Flood,
    /// It does not take what it is sent.
    Stuck,
}

impl Fault {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "it sent a message larger than 4 MiB",
            Self::Flood => "it sent more than 1000 messages in a second that nobody asked for",
            Self::Stuck => "it does not read what it is sent",
        }
    }
}

/// What was asked under an id, and what came of it.
enum Slot {
    Call,
    List,
    Answered(Value),
    TooLarge,
}

/// What a request was answered.
pub(crate) enum Taken {
    Answer(Value),
    TooLarge,
    Nothing,
}

/// One connection's messages.
pub(crate) struct Wire {
    slots: Mutex<BTreeMap<String, Slot>>,
    unasked: Mutex<(Instant, u32)>,
    fault: watch::Sender<Option<Fault>>,
}

impl Wire {
    pub(crate) fn new() -> Self {
        Self {
            slots: Mutex::default(),
            unasked: Mutex::new((Instant::now(), 0)),
            fault: watch::Sender::new(None),
        }
    }

    /// A message is about to be sent: if it is a question whose answer has to be exact, that is waited for.
    pub(crate) fn sending(&self, message: &ClientJsonRpcMessage) {
        let JsonRpcMessage::Request(request) = message else { return };
        let slot = match &request.request {
            ClientRequest::CallToolRequest(_) => Slot::Call,
            ClientRequest::ListToolsRequest(_) => Slot::List,
            _ => return,
        };
        self.slots().insert(request.id.to_string(), slot);
    }

    /// The answer to a request. Whatever still comes under its id is dropped.
    pub(crate) fn take(&self, id: &str) -> Taken {
        match self.slots().remove(id) {
            Some(Slot::Answered(value)) => Taken::Answer(value),
            Some(Slot::TooLarge) => Taken::TooLarge,
            _ => Taken::Nothing,
        }
    }

    /// The answer to a request is larger than anything that is read.
    pub(crate) fn too_large(&self, id: &str) {
        if let Some(slot) = self.slots().get_mut(id) {
            *slot = Slot::TooLarge;
        }
    }

    /// Ends the connection; the first cause counts.
    pub(crate) fn fail(&self, fault: Fault) {
        self.fault.send_if_modified(|known| known.is_none() && known.replace(fault).is_none());
    }

    pub(crate) fn fault(&self) -> Option<Fault> {
        *self.fault.borrow()
    }

    pub(crate) fn faults(&self) -> watch::Receiver<Option<Fault>> {
        self.fault.subscribe()
    }

    /// Reads a message and gives what of it is for rmcp; `None` if it is no message.
    pub(crate) fn read(&self, text: &str) -> Option<String> {
        let Some(mut message) = exact(text).filter(|message| matches!(message, Value::Object(_))) else {
            self.count_unasked();
            return None;
        };
        let is_answer = message.get("method").is_none();
        let id = match message.get("id") {
            Some(Value::Number(id)) if is_answer => Some(id.as_str().to_owned()),
            Some(Value::String(id)) if is_answer => Some(id.clone()),
            _ => None,
        };
        let is_asked = id.is_some_and(|id| self.answered(&id, &mut message));
        if !is_asked {
            self.count_unasked();
        }
        Some(message.to_string())
    }

    /// Keeps an answer that is waited for. Of a call's, rmcp gets an empty one: it has no use for the result, and
    /// reading it into types takes longer than the rest.
    fn answered(&self, id: &str, message: &mut Value) -> bool {
        let mut slots = self.slots();
        let Some(slot) = slots.get_mut(id) else { return false };
        let Value::Object(members) = message else { return false };
        let Some(result) = members.get_mut("result") else { return true };
        match slot {
            Slot::Call => {
                let empty = Value::Object(BTreeMap::new());
                *slot = Slot::Answered(std::mem::replace(result, empty));
            }
            Slot::List => *slot = Slot::Answered(result.clone()),
            // A second answer to one question.
            Slot::Answered(_) | Slot::TooLarge => return false,
        }
        true
    }

    fn count_unasked(&self) {
        let mut unasked = self.unasked.lock().unwrap_or_else(PoisonError::into_inner);
        if unasked.0.elapsed() > Duration::from_secs(1) {
            *unasked = (Instant::now(), 0);
        }
        unasked.1 += 1;
        if unasked.1 > UNASKED_PER_SECOND_MAX && !writ_common::red::off("M09-flood") {
            self.fail(Fault::Flood);
        }
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads JSON with exact numbers. What [`Value`] cannot hold becomes text: numbers without an exact decimal form
/// of 40 characters, and what is nested deeper than 32. Halves of surrogate pairs become U+FFFD, and of members
/// with one name the last counts, as in most readers.
pub(crate) fn exact(text: &str) -> Option<Value> {
    if let Ok(value) = Value::parse(text) {
        return Some(value);
    }
    let softened = soften(text)?;
    if let Ok(value) = Value::parse(&softened) {
        return Some(value);
    }
    let last_wins: serde_json::Value = serde_json::from_str(&softened).ok()?;
    Value::parse(&last_wins.to_string()).ok()
}

fn soften(text: &str) -> Option<String> {
    let mut soft = String::with_capacity(text.len());
    let mut depth = 0_usize;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => string_bytes(rest)?,
            '-' | '0'..='9' => rest.find(|c| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E'))?,
            '{' | '[' if depth == DEPTH_MAX => group_bytes(rest)?,
            _ => first.len_utf8(),
        };
        let (token, after) = rest.split_at_checked(length)?;
        rest = after;
        match first {
            '"' => push_string(&mut soft, token),
            '-' | '0'..='9' if Number::parse(token).is_err() => soft.push_str(&quoted(token)),
            '{' | '[' if depth == DEPTH_MAX => soft.push_str(&quoted(token)),
            '{' | '[' => {
                depth += 1;
                soft.push(first);
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                soft.push(first);
            }
            _ => soft.push_str(token),
        }
    }
    Some(soft)
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// How long the string is that a text begins with, quotes and all.
fn string_bytes(text: &str) -> Option<usize> {
    let mut bytes = text.bytes().enumerate().skip(1);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(at + 1),
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
    None
}

/// How long the array or object is that a text begins with.
fn group_bytes(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        let rest = text.get(at..)?;
        match rest.chars().next()? {
            '"' => {
                at += string_bytes(rest)?;
                continue;
            }
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ => {}
        }
        at += rest.chars().next()?.len_utf8();
        if depth == 0 {
            return Some(at);
        }
    }
}

/// A JSON string with every half of a surrogate pair replaced.
fn push_string(soft: &mut String, token: &str) {
    let mut rest = token;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        soft.push_str(before);
        let unit = |text: &str| {
            let digits = text.strip_prefix("\\u")?.get(..4)?;
            u32::from_str_radix(digits, 16).ok()
        };
        let taken = match unit(escape) {
            Some(0xd800..=0xdbff)
                if escape.get(6..).and_then(unit).is_some_and(|low| (0xdc00..=0xdfff).contains(&low)) =>
            {
                12
            }
            Some(0xd800..=0xdfff) => {
                soft.push_str("\\ufffd");
                rest = escape.get(6..).unwrap_or_default();
                continue;
            }
            _ => 2,
        };
        // Only ASCII follows a backslash in JSON; whatever else stands there is refused by the reader.
        let taken = if escape.is_char_boundary(taken) { taken.min(escape.len()) } else { 1 };
        let (whole, after) = escape.split_at(taken);
        soft.push_str(whole);
        rest = after;
    }
    soft.push_str(rest);
}

#[cfg(test)]
mod tests {
    use rmcp::model::{CallToolRequest, CallToolRequestParams, RequestId};

    use super::*;

    fn read(text: &str) -> String {
        exact(text).map(|value| value.to_string()).unwrap_or_default()
    }

    #[test]
    fn numbers_stay_exact_and_what_has_no_place_becomes_text() {
        for (text, expected) in [
            (
                "[0.1000000000000000055, 18446744073709551617]",
                r#"[0.1000000000000000055,"18446744073709551617"]"#,
            ),
            ("[1e400, 5]", r#"["1e400",5]"#),
            (r#"{"a":1,"a":[2]}"#, r#"{"a":[2]}"#),
            (r#"["\ud800x\ud83d\ude00\\ud800"]"#, "[\"\u{fffd}x\u{1f600}\\\\ud800\"]"),
            (r#"["\ud800\"", 1e400]"#, "[\"\u{fffd}\\\"\",\"1e400\"]"),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        for text in ["", "{", "[1,]", "hello", r#"["\"#, "[1e400", "\"\\é\""] {
            assert_eq!(read(text), "", "{text}");
        }
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        let held = exact(&deep).unwrap();
        assert_eq!(
            held.to_string(),
            format!("{}\"{}{}\"{}", "[".repeat(32), "[".repeat(8), "]".repeat(8), "]".repeat(32))
        );
    }

    fn asked(wire: &Wire, id: i64) {
        let call = CallToolRequest::new(CallToolRequestParams::new("t"));
        let request = ClientRequest::CallToolRequest(call);
        wire.sending(&ClientJsonRpcMessage::request(request, RequestId::Number(id)));
    }

    #[test]
    fn an_answer_is_kept_for_whoever_asked_and_for_nobody_else() {
        let wire = Wire::new();
        asked(&wire, 7);
        let answer = r#"{"jsonrpc":"2.0","id":7,"result":{"content":[],"n":0.1000000000000000055}}"#;
        assert_eq!(wire.read(answer).unwrap(), r#"{"id":7,"jsonrpc":"2.0","result":{}}"#);
        // A second one does not replace it.
        wire.read(&answer.replace("0.1", "0.2")).unwrap();
        let Taken::Answer(kept) = wire.take("7") else { panic!() };
        assert_eq!(kept.to_string(), r#"{"content":[],"n":0.1000000000000000055}"#);
        wire.read(answer).unwrap();
        assert!(matches!(wire.take("7"), Taken::Nothing), "what nobody waits for is kept");
    }

    #[test]
    fn m09_flood_of_messages_nobody_asked_for_ends_the_connection() {
        let wire = Wire::new();
        let note = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{}}"#;
        for _ in 0..=UNASKED_PER_SECOND_MAX {
            wire.read(note);
        }
        assert_eq!(wire.fault(), Some(Fault::Flood));
    }
}
