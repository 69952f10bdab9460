//! `read` on a PostgreSQL database: parsed, run as a role that cannot write, in a transaction that cannot either.
//!
//! PostgreSQL has no authorizer that asks about every column as SQLite's does; the third lock is the role, and what it
//! may do is looked at whenever a connection is made.

use std::{
    fmt::Write as _,
    net::IpAddr,
    path::PathBuf,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::BytesMut;
use futures_util::TryStreamExt as _;
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_postgres::{
    Client, Config, NoTls,
    config::SslMode,
    error::SqlState,
    types::{Format, IsNull, ToSql, Type, to_sql_checked},
};
use writ_bus::keyfile;
use writ_common::{
    datalog::Predicate,
    decide::Gate,
    ids::Action,
    json::{Number, Value},
    reason::{Reason, ReasonCode},
    record::OutcomeStatus,
    time::Millis,
    verdict::Permit,
};

use super::{
    Tool, ToolOutput, ToolSetupError,
    sql_gate::{self, Dialect},
    tool_failed, unknown_action,
};
use crate::guard::ToolFailure;

/// Most bytes of all texts in one result.
const RESULT_BYTES_MAX: usize = 512 * 1024;
/// Most columns of a result.
const COLUMNS_MAX: usize = 256;
/// Queries at once.
const CONNECTIONS: usize = 4;
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the server may take to notice that a query's time is up.
const GRACE: Duration = Duration::from_secs(2);

/// Settings of a PostgreSQL tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresSettings {
    /// Where the server is.
    pub server: PostgresServer,
    /// Its port, which is in the name of its socket as well.
    pub port: u16,
    /// The database.
    pub database: String,
    /// The role, which may do nothing but read.
    pub user: String,
    /// The file with its password, if the server asks for one.
    pub password_file: Option<PathBuf>,
    /// The schema of names without one.
    pub schema: String,
    /// Most rows of a result.
    pub rows_max: usize,
    /// Longest run of a query.
    pub timeout: Millis,
}

/// Where a server is: on this machine, as connections have no TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostgresServer {
    /// At a loopback address.
    Loopback(IpAddr),
    /// In the folder of its Unix socket.
    Socket(PathBuf),
}

/// A PostgreSQL database that can be read.
pub struct Postgres {
    config: Config,
    /// What is set first on every connection.
    session: String,
    schema: String,
    idle: Mutex<Vec<Link>>,
    permits: Semaphore,
    rows_max: usize,
    timeout: Millis,
}

/// A connection; it is closed when dropped, whatever the server is doing.
struct Link {
    client: Client,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a role may not be or have. Read from the catalog, which every role may.
const ROLE: &str = "\
SELECT r.rolsuper, r.rolcreaterole OR r.rolcreatedb OR r.rolreplication,
  (SELECT string_agg(g.rolname::text, ', ' ORDER BY g.rolname) FROM pg_roles g
    WHERE g.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_signal_backend',
      'pg_write_all_data', 'pg_write_server_files') AND pg_has_role(g.oid, 'MEMBER')),
  (SELECT min(format('%I.%I', n.nspname, c.relname)) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
      AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
      AND (pg_has_role(c.relowner, 'MEMBER') OR CASE WHEN c.relkind = 'S'
        THEN has_sequence_privilege(c.oid, 'USAGE, UPDATE')
        ELSE has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
          OR has_any_column_privilege(c.oid, 'INSERT, UPDATE') END)),
  EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = $1 AND has_schema_privilege(n.oid, 'USAGE'))
FROM pg_roles r WHERE r.rolname = current_user";

impl Postgres {
    /// Reads the password, connects once, and looks at what the role may do.
    ///
    /// # Errors
    /// [`ToolSetupError::Setting`] if there is no such server or database, or if the role can do more than read.
    pub fn open(settings: &PostgresSettings) -> Result<Self, ToolSetupError> {
        let mut config = Config::new();
        match &settings.server {
            PostgresServer::Loopback(address) if address.is_loopback() => config.hostaddr(*address),
            PostgresServer::Loopback(address) => {
                let text = format!("{address} is not on this machine, and there is no TLS to PostgreSQL");
                return Err(ToolSetupError::Setting(text));
            }
            PostgresServer::Socket(folder) => config.host_path(folder),
        };
        config
            .port(settings.port)
            .dbname(&settings.database)
            .user(&settings.user)
            .application_name("writ")
            .connect_timeout(CONNECT)
            .ssl_mode(SslMode::Disable);
        if let Some(file) = &settings.password_file {
            let password =
                keyfile::read_secret(file).map_err(|error| ToolSetupError::Setting(error.to_string()))?;
            config.password(password.trim_end_matches(['\r', '\n']));
        }
        let tool = Self {
            config,
            session: session(&settings.schema),
            schema: settings.schema.clone(),
            idle: Mutex::new(Vec::new()),
            permits: Semaphore::new(CONNECTIONS),
            rows_max: settings.rows_max,
            timeout: settings.timeout,
        };
        tool.try_out().map_err(|text| {
            let (user, database) = (&settings.user, &settings.database);
            ToolSetupError::Setting(format!("the database `{database}` as `{user}`: {text}"))
        })?;
        Ok(tool)
    }

    /// Connects once, on a thread of its own: whoever sets tools up waits for nothing else.
    fn try_out(&self) -> Result<(), String> {
        let trial = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| error.to_string())?.block_on(self.connect()).map(drop)
        };
        std::thread::scope(|threads| threads.spawn(trial).join())
            .unwrap_or_else(|_| Err("the connection could not be tried out".to_owned()))
    }

    /// A connection of a role that cannot write.
    async fn connect(&self) -> Result<Link, String> {
        let connecting = async {
            let (client, connection) = self.config.connect(NoTls).await.map_err(|error| shown(&error))?;
            // What goes wrong with it the client is told as well.
            let link = Link { client, task: tokio::spawn(async move { drop(connection.await) }) };
            link.client.batch_execute(&self.session).await.map_err(|error| shown(&error))?;
            self.check_role(&link.client).await?;
            Ok(link)
        };
        let waited = tokio::time::timeout(2 * CONNECT, connecting).await;
        waited.unwrap_or_else(|_| Err("the server does not answer".to_owned()))
    }

    async fn check_role(&self, client: &Client) -> Result<(), String> {
        let read =
            |error: tokio_postgres::Error| format!("what the role may do is not known: {}", shown(&error));
        let row = client.query_one(ROLE, &[&self.schema]).await.map_err(read)?;
        if !row.try_get::<_, bool>(4).map_err(read)? {
            let schema = &self.schema;
            return Err(format!("there is no schema `{schema}`, or no `GRANT USAGE ON SCHEMA` to the role"));
        }
        if writ_common::red::off("A02") {
            return Ok(());
        }
        let advice = "make a role that only has SELECT on the tables to be read";
        if row.try_get::<_, bool>(0).map_err(read)? {
            return Err(format!("the role is a superuser; {advice}"));
        }
        if row.try_get::<_, bool>(1).map_err(read)? {
            return Err(format!("the role may make roles or databases, or replicate; {advice}"));
        }
        if let Some(groups) = row.try_get::<_, Option<String>>(2).map_err(read)? {
            return Err(format!("the role is a member of {groups}; {advice}"));
        }
        if let Some(table) = row.try_get::<_, Option<String>>(3).map_err(read)? {
            return Err(format!("the role owns `{table}` or may write to it; {advice}"));
        }
        Ok(())
    }

    fn names(&self) -> Dialect<'_> {
        Dialect::Postgres { schema: &self.schema }
    }

    /// A connection within a transaction that cannot write. Those that were lost meanwhile are forgotten.
    async fn begin(&self) -> Result<Link, ToolFailure> {
        let mode = if writ_common::red::off("A02") { "READ WRITE" } else { "READ ONLY" };
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED {mode}; SET LOCAL statement_timeout = {}",
            self.timeout.0
        );
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(link) = idle else { break };
            if !link.client.is_closed() && link.client.batch_execute(&begin).await.is_ok() {
                return Ok(link);
            }
        }
        let not_run = |text: String| ToolFailure {
            reason: Reason::new(ReasonCode::ToolFailed).told(text),
            status: OutcomeStatus::NotRun,
        };
        let link = self.connect().await.map_err(not_run)?;
        link.client.batch_execute(&begin).await.map_err(|error| not_run(shown(&error)))?;
        Ok(link)
    }

    async fn read(&self, sql: &str, params: &[Param]) -> Result<Value, ToolFailure> {
        let link = self.begin().await?;
        let result = self.select(&link.client, sql, params).await;
        // After a result that was too large more may be on its way; that connection is closed.
        let is_too_large =
            matches!(&result, Err(failure) if failure.reason.code() == ReasonCode::ToolResultTooLarge);
        if !is_too_large && link.client.batch_execute("ROLLBACK").await.is_ok() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(link);
        }
        result
    }

    async fn select(&self, client: &Client, sql: &str, params: &[Param]) -> Result<Value, ToolFailure> {
        let failed = |error: tokio_postgres::Error| self.failure_of(&error);
        let sql = sql.trim().trim_end_matches([';', ' ', '\t', '\r', '\n']);
        let plain = client.prepare(sql).await.map_err(failed)?;
        let (wanted, given) = (plain.params().len(), params.len());
        if wanted != given {
            return Err(tool_failed(format_args!(
                "the query has {wanted} parameters, and {given} were given"
            )));
        }
        let columns = plain.columns();
        if columns.is_empty() || columns.len() > COLUMNS_MAX {
            return Err(tool_failed(format_args!("a result has 1 to {COLUMNS_MAX} columns")));
        }
        let bounded = client.prepare(&bounded(sql, columns.len(), self.rows_max)).await.map_err(failed)?;
        let rows = client.query_raw(&bounded, params.iter()).await.map_err(failed)?;
        let mut rows = pin!(rows);
        let (mut found, mut bytes, mut is_truncated) = (Vec::new(), 0usize, false);
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            if found.len() == self.rows_max || bytes > RESULT_BYTES_MAX {
                is_truncated = true;
                break;
            }
            let size: i64 = row.try_get(0).map_err(failed)?;
            bytes = bytes
                .saturating_add(usize::try_from(size).unwrap_or(usize::MAX))
                .saturating_add(columns.len());
            if bytes > 2 * RESULT_BYTES_MAX {
                return Err(ToolFailure {
                    reason: ReasonCode::ToolResultTooLarge.into(),
                    status: OutcomeStatus::Failed,
                });
            }
            let mut cells = Vec::with_capacity(columns.len());
            for (index, column) in columns.iter().enumerate() {
                let text: Option<String> = row.try_get(index + 1).map_err(failed)?;
                cells.push(cell(column.type_(), text));
            }
            found.push(Value::Array(cells));
        }
        let names = columns.iter().map(|column| Value::from(column.name())).collect();
        Ok([
            ("columns", Value::Array(names)),
            ("rows", Value::Array(found)),
            ("truncated", Value::Bool(is_truncated)),
        ]
        .into_iter()
        .collect())
    }

    /// A read has no effect, however it ended.
    fn failure_of(&self, error: &tokio_postgres::Error) -> ToolFailure {
        if error.code() == Some(&SqlState::QUERY_CANCELED) {
            return self.timed_out(OutcomeStatus::Failed);
        }
        tool_failed(shown(error))
    }

    fn timed_out(&self, status: OutcomeStatus) -> ToolFailure {
        let reason = Reason::new(ReasonCode::ToolTimeout).told(format_args!("longer than {}", self.timeout));
        ToolFailure { reason, status }
    }
}

/// What is set on every connection: what names, texts and values mean must not hang on the server's settings.
fn session(schema: &str) -> String {
    format!(
        "SET search_path = pg_catalog, \"{}\", pg_temp; SET default_transaction_read_only = on; \
         SET standard_conforming_strings = on; SET \"TimeZone\" = 'UTC'; SET \"DateStyle\" = 'ISO, YMD'; \
         SET \"IntervalStyle\" = 'iso_8601'; SET bytea_output = 'hex'; SET extra_float_digits = 1",
        schema.replace('"', "\"\"")
    )
}

/// The query with every value as text, and before them the bytes of them all; values too large to be sent are not.
/// The query stands in it as it was admitted, and PostgreSQL takes no second statement in a prepared one.
fn bounded(sql: &str, columns: usize, rows_max: usize) -> String {
    let (mut names, mut texts, mut sizes, mut values) =
        (String::new(), String::new(), String::new(), String::new());
    for column in 0..columns {
        let comma = if column == 0 { "" } else { ", " };
        let plus = if column == 0 { "" } else { " + " };
        // Writing to a text cannot fail.
        _ = write!(names, "{comma}c{column}");
        _ = write!(texts, "{comma}q.c{column}::text AS c{column}");
        _ = write!(sizes, "{plus}coalesce(octet_length(t.c{column}), 0)::bigint");
        _ = write!(values, ", CASE WHEN s.size <= {} THEN s.c{column} END", 2 * RESULT_BYTES_MAX);
    }
    format!(
        "SELECT s.size{values} FROM (SELECT t.*, {sizes} AS size FROM (SELECT {texts} FROM ({sql}\n) AS q({names})) AS t) \
         AS s LIMIT {}",
        rows_max.saturating_add(1)
    )
}

/// A value of the result from its text, which PostgreSQL writes without loss.
fn cell(kind: &Type, text: Option<String>) -> Value {
    let Some(text) = text else { return Value::Null };
    match *kind {
        Type::BOOL => Value::Bool(text == "true"),
        Type::INT2 | Type::INT4 | Type::INT8 | Type::OID => match text.parse::<i64>() {
            Ok(integer) => Value::from(integer),
            Err(_) => Value::from(text),
        },
        // What JSON's exact numbers cannot hold is passed on as text.
        Type::FLOAT4 | Type::FLOAT8 => match Number::parse(&text) {
            Ok(number) => Value::Number(number),
            Err(_) => Value::from(text),
        },
        Type::BYTEA => Value::from(format!("hex:{}", text.strip_prefix("\\x").unwrap_or(&text))),
        _ => Value::from(text),
    }
}

/// A parameter, sent beside the query as text; the server reads it as the type it has there.
#[derive(Debug)]
struct Param(Option<String>);

impl Param {
    fn read(value: &Value) -> Result<Self, ToolFailure> {
        Ok(Self(match value {
            Value::Null => None,
            Value::Bool(value) => Some(value.to_string()),
            Value::Number(number) => Some(number.as_str().to_owned()),
            Value::String(text) => Some(text.clone()),
            Value::Array(_) | Value::Object(_) => {
                return Err(ToolFailure {
                    reason: Reason::new(ReasonCode::ArgInvalid).told("parameters are single values"),
                    status: OutcomeStatus::NotRun,
                });
            }
        }))
    }
}

impl ToSql for Param {
    fn to_sql(
        &self,
        _kind: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let Some(text) = &self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(text.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_kind: &Type) -> bool {
        true
    }

    fn encode_format(&self, _kind: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// What the server said, with its code; of anything else what lies behind it.
fn shown(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", said.message(), said.code().code());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    text
}

impl Gate for Postgres {
    fn admit(&self, action: &Action, arguments: &Value) -> Result<Vec<Predicate>, Reason> {
        if action.as_str() != "read" {
            return Err(unknown_action(action));
        }
        let sql = arguments.get("sql").and_then(Value::as_str).unwrap_or_default();
        Ok(sql_gate::admit_select(sql, self.names())?.facts())
    }
}

#[async_trait]
impl Tool for Postgres {
    async fn call(&self, permit: Permit) -> Result<ToolOutput, ToolFailure> {
        let arguments = permit.arguments().value();
        let sql = arguments.get("sql").and_then(Value::as_str).unwrap_or_default();
        // The locks hold by themselves: what comes here was admitted, and is looked at again.
        sql_gate::admit_select(sql, self.names())
            .map_err(|reason| ToolFailure { reason, status: OutcomeStatus::NotRun })?;
        let params: Vec<Param> = match arguments.get("params") {
            Some(Value::Array(items)) => items.iter().map(Param::read).collect::<Result<_, _>>()?,
            _ => Vec::new(),
        };
        let timeout = self.timeout.to_duration();
        let waiting = tokio::time::timeout(timeout, self.permits.acquire()).await;
        let Ok(Ok(_turn)) = waiting else { return Err(self.timed_out(OutcomeStatus::NotRun)) };
        let reading = tokio::time::timeout(timeout + GRACE, self.read(sql, &params)).await;
        reading.unwrap_or_else(|_| Err(self.timed_out(OutcomeStatus::Failed))).map(ToolOutput::from)
    }
}
