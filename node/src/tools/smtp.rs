//! `send`: a letter, by SMTP (RFC 5321), to the server that the operator named.
//!
//! What cannot be taken back is said with care: a letter that the server refused was not sent, and one whose answer
//! never came may have been.

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor,
    message::Mailbox,
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, CertificateStore, Tls, TlsParameters},
    },
};
use writ_bus::keyfile;
use writ_common::{
    datalog::Predicate,
    decide::Gate,
    ids::Action,
    json::Value,
    reason::{Reason, ReasonCode},
    record::OutcomeStatus,
    time::Millis,
    verdict::Permit,
};

use super::{
    Tool, ToolOutput, ToolSetupError, mail::Letter, tool_failed, trust::read_certificates, unknown_action,
};
use crate::guard::ToolFailure;

/// Settings of an SMTP tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmtpSettings {
    /// The server's name.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is protected.
    pub security: SmtpSecurity,
    /// The sender of every letter.
    pub from: String,
    /// The user, and the file with the password.
    pub login: Option<(String, PathBuf)>,
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// How long a call may take.
    pub timeout: Millis,
}

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmtpSecurity {
    /// Not at all: for a server on this very machine.
    None,
    /// TLS after STARTTLS, or no letter (RFC 3207).
    StartTls,
    /// TLS from the first byte (RFC 8314).
    Tls,
}

impl std::str::FromStr for SmtpSecurity {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "starttls" => Ok(Self::StartTls),
            "tls" => Ok(Self::Tls),
            _ => Err("must be `tls`, `starttls`, or for a server on this machine `none`"),
        }
    }
}

impl SmtpSecurity {
    /// The port that is usual for it.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::None => 25,
            Self::StartTls => 587,
            Self::Tls => 465,
        }
    }
}

/// Letters by SMTP.
pub struct Smtp {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    timeout: Duration,
}

impl Smtp {
    /// Reads password and certificates. The server is not spoken to before the first letter.
    ///
    /// # Errors
    /// [`ToolSetupError`] if one of them cannot be read, or the sender is no address.
    pub fn open(settings: &SmtpSettings) -> Result<Self, ToolSetupError> {
        let from = &settings.from;
        let from =
            from.parse().map_err(|error| ToolSetupError::Setting(format!("`from = \"{from}\"`: {error}")))?;
        let tls = match settings.security {
            SmtpSecurity::None => Tls::None,
            SmtpSecurity::StartTls => Tls::Required(tls_parameters(settings)?),
            SmtpSecurity::Tls => Tls::Wrapper(tls_parameters(settings)?),
        };
        let timeout = settings.timeout.to_duration();
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(settings.host.as_str())
            .port(settings.port)
            .timeout(Some(timeout))
            .tls(tls);
        if let Some((user, password_file)) = &settings.login {
            let password = keyfile::read_secret(password_file)
                .map_err(|error| ToolSetupError::Setting(error.to_string()))?;
            builder = builder.credentials(Credentials::new(
                user.clone(),
                password.trim_end_matches(['\r', '\n']).to_owned(),
            ));
        }
        Ok(Self { transport: builder.build(), from, timeout })
    }
}

fn tls_parameters(settings: &SmtpSettings) -> Result<TlsParameters, ToolSetupError> {
    let mut builder = TlsParameters::builder(settings.host.clone());
    if let Some(path) = &settings.ca_file {
        builder = builder.certificate_store(CertificateStore::None);
        for certificate in read_certificates(path)? {
            let certificate = Certificate::from_der(certificate.to_vec())
                .map_err(|error| ToolSetupError::Path { path: path.clone(), why: error.to_string() })?;
            builder = builder.add_root_certificate(certificate);
        }
    }
    builder.build().map_err(|error| ToolSetupError::Setting(format!("no TLS: {error}")))
}

impl Smtp {
    fn letter(&self, action: &Action, arguments: &Value) -> Result<Letter, Reason> {
        if action.as_str() != "send" {
            return Err(unknown_action(action));
        }
        Letter::read(&self.from, arguments)
    }
}

impl Gate for Smtp {
    fn admit(&self, action: &Action, arguments: &Value) -> Result<Vec<Predicate>, Reason> {
        Ok(self.letter(action, arguments)?.facts())
    }
}

#[async_trait]
impl Tool for Smtp {
    async fn call(&self, permit: Permit) -> Result<ToolOutput, ToolFailure> {
        let letter = self
            .letter(permit.action(), permit.arguments().value())
            .map_err(|reason| ToolFailure { reason, status: OutcomeStatus::NotRun })?;
        let recipients = i64::try_from(letter.recipients()).unwrap_or(i64::MAX);
        match tokio::time::timeout(self.timeout, self.transport.send(letter.message)).await {
            Ok(Ok(response)) => {
                let answer = response.message().collect::<Vec<_>>().join(" ");
                let result: Value = [
                    ("answer", Value::from(answer)),
                    ("recipients", Value::from(recipients)),
                    ("sent", Value::Bool(true)),
                ]
                .into_iter()
                .collect();
                Ok(result.into())
            }
            Ok(Err(error)) => Err(failure_of(&error)),
            Err(_) => Err(perhaps_sent("the server did not answer in time")),
        }
    }
}

/// What the server refused it did not take; of everything else nobody can say.
fn failure_of(error: &lettre::transport::smtp::Error) -> ToolFailure {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    let is_refused = error.is_permanent() || error.is_transient() || error.is_client() || error.is_tls();
    if is_refused { tool_failed(text) } else { perhaps_sent(text) }
}

fn perhaps_sent(text: impl std::fmt::Display) -> ToolFailure {
    ToolFailure {
        reason: Reason::new(ReasonCode::ToolTimeout).told(text),
        status: OutcomeStatus::UnknownOutcome,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::tools::testing::permit;

    fn settings() -> SmtpSettings {
        SmtpSettings {
            host: "127.0.0.1".to_owned(),
            port: 1,
            security: SmtpSecurity::None,
            from: "Support <support@acme.example>".to_owned(),
            login: None,
            ca_file: None,
            timeout: Millis::from_secs(2),
        }
    }

    #[test]
    fn what_is_missing_is_found_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let password = folder.path().join("password");
        std::fs::write(&password, "secret\n").unwrap();
        let with = |change: fn(&mut SmtpSettings)| {
            let mut settings = settings();
            change(&mut settings);
            settings
        };
        assert!(Smtp::open(&settings()).is_ok());
        assert!(Smtp::open(&with(|settings| settings.from = "nobody".to_owned())).is_err());
        let tls = with(|settings| settings.security = SmtpSecurity::Tls);
        assert!(Smtp::open(&SmtpSettings { ca_file: Some(password.clone()), ..tls }).is_err());
        let mut login = settings();
        login.login = Some(("support".to_owned(), password.clone()));
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o644)).unwrap();
        let Err(error) = Smtp::open(&login) else { panic!("others can read the password") };
        assert!(error.to_string().contains("chmod 600"), "{error}");
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Smtp::open(&login).is_ok());
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_leaves_it_open_whether_the_letter_went() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let settings = SmtpSettings { port, timeout: Millis(300), ..settings() };
        let smtp = Smtp::open(&settings).unwrap();
        let letter = r#"{"to":["ada@example.com"],"subject":"s","body":"b"}"#;
        let failure = smtp.call(permit("tool.mail", "send", letter)).await.unwrap_err();
        assert_eq!(failure.status, OutcomeStatus::UnknownOutcome);
        assert_eq!(failure.reason.code(), ReasonCode::ToolTimeout);
    }
}
