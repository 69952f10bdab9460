//! `read` on a SQLite file: parsed, opened read-only, and watched by SQLite's own authorizer.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use rusqlite::{
    Connection, OpenFlags,
    hooks::{AuthAction, AuthContext, Authorization},
    limits::Limit,
    types::{Value as SqlValue, ValueRef},
};
use tokio::sync::Semaphore;
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
    sql_gate::{self, Dialect, Reads},
    tool_failed, unknown_action,
};
use crate::guard::ToolFailure;

/// Most bytes of all texts in one result.
const RESULT_BYTES_MAX: usize = 512 * 1024;

/// A SQLite file that can be read.
pub struct Sqlite {
    idle: Arc<Mutex<Vec<Connection>>>,
    /// One permit per connection: whoever has one finds one idle.
    permits: Arc<Semaphore>,
    rows_max: usize,
    timeout: Millis,
}

/// Queries at once.
const CONNECTIONS: usize = 4;
/// How many of SQLite's steps pass between two looks at the clock.
const STEPS_PER_LOOK: i32 = 10_000;
/// How long a query may take to notice that its time is up.
const GRACE: Duration = Duration::from_secs(2);

impl Sqlite {
    /// Opens the file read-only.
    ///
    /// # Errors
    /// [`ToolSetupError::Path`] if there is no readable database.
    pub fn open(file: &Path, rows_max: usize, timeout: Millis) -> Result<Self, ToolSetupError> {
        let failed = |error: rusqlite::Error| ToolSetupError::Path {
            path: PathBuf::from(file),
            why: format!("no readable SQLite database: {error}"),
        };
        let flags = if writ_common::red::off("A02") {
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
        } else {
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX
        };
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            idle.push(Self::connect(file, flags).map_err(failed)?);
        }
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        Ok(Self { idle: Arc::new(Mutex::new(idle)), permits, rows_max, timeout })
    }

    fn connect(file: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(file, flags)?;
        // What a query sorts or groups stays in memory, and that is bounded for the whole process.
        connection.execute_batch("PRAGMA temp_store = MEMORY; PRAGMA hard_heap_limit = 268435456;")?;
        let limits = [
            (Limit::SQLITE_LIMIT_ATTACHED, 0),
            (Limit::SQLITE_LIMIT_LENGTH, i32::try_from(RESULT_BYTES_MAX).unwrap_or(i32::MAX)),
            (Limit::SQLITE_LIMIT_SQL_LENGTH, 64 * 1024),
            (Limit::SQLITE_LIMIT_EXPR_DEPTH, 100),
            (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 20),
            (Limit::SQLITE_LIMIT_COLUMN, 256),
            // A long pattern on a long text is one step that nothing interrupts.
            (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 128),
        ];
        for (limit, value) in limits {
            connection.set_limit(limit, value)?;
        }
        // Fails now if the file is no database.
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(connection)
    }
}

/// The third lock: SQLite asks about everything a statement would touch. What is read has to be what the policy was
/// told, directly or through a view that it was told of.
fn authorize(reads: &Reads, context: &AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::Select | AuthAction::Recursive => Authorization::Allow,
        AuthAction::Read { table_name, column_name } if !table_name.starts_with("sqlite_") => {
            let through = context.accessor.map(str::to_ascii_lowercase);
            let is_stated = reads.covers(&table_name.to_ascii_lowercase(), &column_name.to_ascii_lowercase())
                || through.is_some_and(|view| reads.covers_table(&view));
            if is_stated { Authorization::Allow } else { Authorization::Deny }
        }
        AuthAction::Function { function_name }
            if sql_gate::FUNCTIONS.contains(&function_name.to_ascii_lowercase().as_str()) =>
        {
            Authorization::Allow
        }
        _ => Authorization::Deny,
    }
}

impl Gate for Sqlite {
    fn admit(&self, action: &Action, arguments: &Value) -> Result<Vec<Predicate>, Reason> {
        if action.as_str() != "read" {
            return Err(unknown_action(action));
        }
        let sql = arguments.get("sql").and_then(Value::as_str).unwrap_or_default();
        Ok(sql_gate::admit_select(sql, Dialect::Sqlite)?.facts())
    }
}

#[async_trait]
impl Tool for Sqlite {
    async fn call(&self, permit: Permit) -> Result<ToolOutput, ToolFailure> {
        let timeout = self.timeout.to_duration();
        let deadline = Instant::now() + timeout;
        let timed_out = |status| ToolFailure {
            reason: Reason::new(ReasonCode::ToolTimeout).told(format_args!("longer than {}", self.timeout)),
            status,
        };
        let waiting = tokio::time::timeout(timeout, Arc::clone(&self.permits).acquire_owned()).await;
        let Ok(Ok(turn)) = waiting else { return Err(timed_out(OutcomeStatus::NotRun)) };
        let (idle, rows_max) = (Arc::clone(&self.idle), self.rows_max);
        let query = tokio::task::spawn_blocking(move || {
            let taken = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut connection = taken.ok_or_else(|| tool_failed("no connection is idle"))?;
            // The query looks at the clock by itself: whoever waits for it may be gone or busy.
            let look = move || Instant::now() >= deadline;
            let arguments = permit.arguments().value();
            let result = connection
                .progress_handler(STEPS_PER_LOOK, Some(look))
                .and_then(|()| watch(&mut connection, arguments))
                .map_err(tool_failed)
                .and_then(|()| select(&connection, arguments, rows_max));
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            drop(turn);
            result
        });
        match tokio::time::timeout(timeout + GRACE, query).await {
            Ok(Ok(Err(_))) if Instant::now() >= deadline => Err(timed_out(OutcomeStatus::Failed)),
            Ok(Ok(result)) => result.map(ToolOutput::from),
            Ok(Err(error)) => Err(tool_failed(error)),
            // It ends by itself; nothing a SELECT does outlives it.
            Err(_) => Err(timed_out(OutcomeStatus::Failed)),
        }
    }
}

/// Sets the authorizer for one query. If the gate were fooled, it would have said less than the query reads.
fn watch(connection: &mut Connection, arguments: &Value) -> rusqlite::Result<()> {
    let sql = arguments.get("sql").and_then(Value::as_str).unwrap_or_default();
    let reads = sql_gate::admit_select(sql, Dialect::Sqlite).unwrap_or_default();
    if writ_common::red::off("A02") {
        return Ok(());
    }
    connection.authorizer(Some(move |context: AuthContext<'_>| authorize(&reads, &context)))
}

fn select(connection: &Connection, arguments: &Value, rows_max: usize) -> Result<Value, ToolFailure> {
    let sql = arguments.get("sql").and_then(Value::as_str).unwrap_or_default();
    let mut statement = connection.prepare(sql).map_err(tool_failed)?;
    if !statement.readonly() && !writ_common::red::off("A02") {
        return Err(tool_failed("the statement is not read-only"));
    }
    let params = match arguments.get("params") {
        Some(Value::Array(items)) => items.iter().map(to_sql).collect(),
        _ => Vec::new(),
    };
    let columns: Vec<Value> = statement.column_names().map(Value::from).collect();
    let width = columns.len();
    let mut rows = statement.query(rusqlite::params_from_iter(params)).map_err(tool_failed)?;
    let (mut found, mut bytes, mut truncated) = (Vec::new(), 0usize, false);
    while let Some(row) = rows.next().map_err(tool_failed)? {
        if found.len() == rows_max || bytes > RESULT_BYTES_MAX {
            truncated = true;
            break;
        }
        let mut cells = Vec::with_capacity(width);
        for index in 0..width {
            let cell = from_sql(row.get_ref(index).map_err(tool_failed)?);
            bytes += cell.as_str().map_or(8, str::len);
            if bytes > 2 * RESULT_BYTES_MAX {
                return Err(ToolFailure {
                    reason: ReasonCode::ToolResultTooLarge.into(),
                    status: OutcomeStatus::Failed,
                });
            }
            cells.push(cell);
        }
        found.push(Value::Array(cells));
    }
    Ok([
        ("columns", Value::Array(columns)),
        ("rows", Value::Array(found)),
        ("truncated", Value::Bool(truncated)),
    ]
    .into_iter()
    .collect())
}

fn to_sql(value: &Value) -> SqlValue {
    match value {
        Value::Bool(value) => SqlValue::Integer(i64::from(*value)),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => SqlValue::Integer(integer),
            None => SqlValue::Text(number.as_str().to_owned()),
        },
        Value::String(text) => SqlValue::Text(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => SqlValue::Null,
    }
}

fn from_sql(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(integer) => Value::from(integer),
        // A REAL that JSON's exact numbers cannot hold is passed on as text.
        ValueRef::Real(real) => match Number::parse(&real.to_string()) {
            Ok(number) => Value::Number(number),
            Err(_) => Value::from(real.to_string()),
        },
        ValueRef::Text(text) => Value::from(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Value::from(format!("hex:{}", hex::encode(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::testing::permit;

    fn database() -> (tempfile::TempDir, Sqlite) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("crm.db");
        Connection::open(&file)
            .unwrap()
            .execute_batch(
                "CREATE TABLE customers (id INTEGER, name TEXT, score REAL); \
                 INSERT INTO customers VALUES (1, 'Ada', 98.7), (2, 'Bo', NULL);",
            )
            .unwrap();
        let tool = Sqlite::open(&file, 100, Millis(500)).unwrap();
        (folder, tool)
    }

    async fn read(tool: &Sqlite, arguments: &str) -> Result<String, String> {
        let result = tool.call(permit("tool.crm", "read", arguments)).await;
        result
            .map(|output| output.value.to_string())
            .map_err(|failure| failure.reason.for_caller().to_owned())
    }

    #[tokio::test]
    async fn rows_come_back_exactly() {
        let (_folder, tool) = database();
        let result =
            read(&tool, r#"{"sql":"SELECT id, name, score FROM customers WHERE id >= ?1","params":[1]}"#)
                .await;
        assert_eq!(
            result.unwrap(),
            r#"{"columns":["id","name","score"],"rows":[[1,"Ada",98.7],[2,"Bo",null]],"truncated":false}"#
        );
    }

    /// A02: even if the parser were fooled, the connection and the authorizer refuse.
    #[tokio::test]
    async fn a02_the_second_and_third_lock_hold_by_themselves() {
        let (_folder, tool) = database();
        for sql in [
            "DELETE FROM customers",
            "UPDATE customers SET name = 'x'",
            "CREATE TABLE t (x)",
            "ATTACH DATABASE ':memory:' AS other",
            "PRAGMA journal_mode = DELETE",
            "SELECT load_extension('x')",
            "SELECT * FROM sqlite_schema",
            "CREATE TEMP TABLE t AS SELECT 1",
            "SELECT randomblob(10)",
        ] {
            let arguments: Value = [("sql", Value::from(sql))].into_iter().collect();
            let result = read(&tool, &arguments.to_string()).await;
            assert!(result.is_err(), "{sql}: {result:?}");
        }
        assert!(read(&tool, r#"{"sql":"SELECT count(*) FROM customers"}"#).await.unwrap().contains("[[2]]"));
    }

    #[tokio::test]
    async fn views_aliases_and_recursion_are_read_as_they_were_stated() {
        let (folder, tool) = database();
        Connection::open(folder.path().join("crm.db"))
            .unwrap()
            .execute_batch("CREATE VIEW people AS SELECT id AS number, upper(name) AS who FROM customers")
            .unwrap();
        for (sql, rows) in [
            ("SELECT who FROM people WHERE number = 1", r#"[["ADA"]]"#),
            (
                "SELECT p.who FROM (SELECT * FROM people) p JOIN customers c ON c.id = p.number",
                r#"[["ADA"],["BO"]]"#,
            ),
            (
                "WITH c AS (SELECT name AS n FROM customers) SELECT n FROM c ORDER BY n DESC LIMIT 1",
                r#"[["Bo"]]"#,
            ),
            ("SELECT rowid FROM customers WHERE customers.name = 'Ada'", "[[1]]"),
            ("SELECT count(*) FROM Customers", "[[2]]"),
            ("SELECT name FROM customers WHERE id = (SELECT max(id) FROM customers)", r#"[["Bo"]]"#),
            (
                "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 3) \
                 SELECT x, name FROM n LEFT JOIN customers ON id = x",
                r#"[[1,"Ada"],[2,"Bo"],[3,null]]"#,
            ),
        ] {
            let arguments: Value = [("sql", Value::from(sql))].into_iter().collect();
            let result = read(&tool, &arguments.to_string()).await;
            assert!(
                result.as_ref().is_ok_and(|text| text.contains(&format!("\"rows\":{rows}"))),
                "{sql}: {result:?}"
            );
        }
    }

    /// A02: whatever the parser makes of a query, SQLite reads no more than the policy was told of.
    #[test]
    fn a02_what_was_not_stated_is_not_read() {
        let (folder, _tool) = database();
        let mut connection =
            Sqlite::connect(&folder.path().join("crm.db"), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let stated: Value = [("sql", Value::from("SELECT id FROM customers"))].into_iter().collect();
        watch(&mut connection, &stated).unwrap();
        for (sql, is_read) in [
            ("SELECT id FROM customers", true),
            ("SELECT count(*) FROM customers", true),
            ("SELECT name FROM customers", false),
            ("SELECT * FROM customers", false),
            ("SELECT id FROM customers WHERE score > 1", false),
        ] {
            let prepared = connection.prepare(sql).map(drop);
            assert_eq!(prepared.is_ok(), is_read, "{sql}: {prepared:?}");
        }
    }

    #[tokio::test]
    async fn a_query_without_end_is_interrupted() {
        let (_folder, tool) = database();
        let endless = r#"{"sql":"WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"}"#;
        assert_eq!(read(&tool, endless).await, Err("longer than 500 ms".to_owned()));
        assert!(read(&tool, r#"{"sql":"SELECT 1"}"#).await.is_ok());
    }

    #[tokio::test]
    async fn results_are_bounded() {
        let (_folder, tool) = database();
        let many = r#"{"sql":"WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 500) SELECT x FROM n"}"#;
        let result = read(&tool, many).await.unwrap();
        assert!(result.ends_with(r#""truncated":true}"#), "{result}");
    }

    #[test]
    fn a_file_that_is_no_database_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("crm.db");
        assert!(Sqlite::open(&file, 1, Millis(1)).is_err());
        std::fs::write(&file, "this is not a database, but long enough to be looked at closely").unwrap();
        assert!(Sqlite::open(&file, 1, Millis(1)).is_err());
    }
}
