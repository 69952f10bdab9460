//! The SQL gate: one statement, a SELECT, of parts that are on a list.
//!
//! It is the first of three locks; the second is a connection that cannot write, the third the database's own
//! authorizer. Reading is by `sqlparser`; whatever it cannot read with certainty is refused, and so are comments,
//! in which dialects hide statements. What it lets through it describes: [`Reads`] becomes facts for the policy.

use std::ops::ControlFlow;

use sqlparser::{
    ast::{
        Expr, FunctionArguments, ObjectName, Query, Select, SelectFlavor, SetExpr, Statement, TableFactor,
        Visit as _, Visitor,
    },
    dialect::{PostgreSqlDialect, SQLiteDialect},
    parser::Parser,
    tokenizer::{Token, Tokenizer, Whitespace},
};
use writ_common::reason::{Reason, ReasonCode};

use super::postgres_gate;
pub use super::sql_reads::{Dialect, Reads};
use super::sql_reads::{Tracker, Unsure};

/// Functions of SQLite that read nothing but their arguments.
pub const FUNCTIONS: [&str; 46] = [
    "abs",
    "avg",
    "coalesce",
    "concat",
    "count",
    "cume_dist",
    "date",
    "datetime",
    "dense_rank",
    "first_value",
    "group_concat",
    "ifnull",
    "iif",
    "instr",
    "julianday",
    "lag",
    "last_value",
    "lead",
    "length",
    "like",
    "lower",
    "ltrim",
    "max",
    "min",
    "nth_value",
    "ntile",
    "nullif",
    "percent_rank",
    "rank",
    "replace",
    "round",
    "row_number",
    "rtrim",
    "sign",
    "strftime",
    "string_agg",
    "substr",
    "substring",
    "sum",
    "time",
    "total",
    "trim",
    "typeof",
    "unicode",
    "unixepoch",
    "upper",
];

/// Deepest nesting the parser follows.
const RECURSION_MAX: usize = 40;

/// Lets exactly one plain SELECT through and returns what it reads.
///
/// # Errors
/// `sql.unparsable`, `sql.multi_statement` or `sql.not_read_only`.
pub fn admit_select(sql: &str, names: Dialect<'_>) -> Result<Reads, Reason> {
    let unparsable = |text: String| Reason::new(ReasonCode::SqlUnparsable).told(text);
    let dialect: &dyn sqlparser::dialect::Dialect = match names {
        Dialect::Postgres { .. } => &PostgreSqlDialect {},
        Dialect::Sqlite => &SQLiteDialect {},
    };
    let tokens = Tokenizer::new(dialect, sql).tokenize().map_err(|error| unparsable(error.to_string()))?;
    let has_comment = tokens.iter().any(|token| {
        matches!(
            token,
            Token::Whitespace(Whitespace::SingleLineComment { .. } | Whitespace::MultiLineComment(_))
        )
    });
    if has_comment && !writ_common::red::off("A03") {
        return Err(unparsable("comments are not accepted".to_owned()));
    }
    if matches!(names, Dialect::Postgres { .. }) {
        postgres_gate::check_tokens(&tokens).map_err(unparsable)?;
    }
    let statements = Parser::new(dialect)
        .with_recursion_limit(RECURSION_MAX)
        .with_tokens(tokens)
        .parse_statements()
        .map_err(|error| unparsable(error.to_string()))?;
    let statement = match statements.as_slice() {
        [statement] => statement,
        [] => return Err(unparsable("there is no statement".to_owned())),
        [first, ..] if writ_common::red::off("A01") => first,
        more => {
            return Err(Reason::new(ReasonCode::SqlMultiStatement)
                .told(format_args!("{} statements where one is allowed", more.len())));
        }
    };
    let mut gate = SelectGate { names, tracker: Tracker::new(names) };
    match statement.visit(&mut gate) {
        ControlFlow::Break(refusal) if !writ_common::red::off("A02") => {
            Err(Reason::new(ReasonCode::SqlNotReadOnly).told(refusal))
        }
        _ => gate.tracker.finish().map_err(unparsable),
    }
}

struct SelectGate<'a> {
    names: Dialect<'a>,
    tracker: Tracker<'a>,
}

pub(super) type Flow = ControlFlow<String>;

pub(super) fn refuse(what: impl Into<String>) -> Flow {
    ControlFlow::Break(what.into())
}

fn flow(tracked: Result<(), Unsure>) -> Flow {
    tracked.map_or_else(refuse, ControlFlow::Continue)
}

impl Visitor for SelectGate<'_> {
    type Break = String;

    fn pre_visit_statement(&mut self, statement: &Statement) -> Flow {
        match statement {
            Statement::Query(_) => ControlFlow::Continue(()),
            other => {
                let text = other.to_string();
                let verb = text.split_whitespace().next().unwrap_or("this statement");
                refuse(format!("`{verb}` is no SELECT"))
            }
        }
    }

    fn pre_visit_query(&mut self, query: &Query) -> Flow {
        let has_extras = !query.locks.is_empty()
            || query.for_clause.is_some()
            || query.settings.is_some()
            || query.format_clause.is_some()
            || !query.pipe_operators.is_empty();
        if has_extras {
            return refuse("locking or output clauses are not accepted");
        }
        self.tracker.enter_query(query);
        set_expr(&query.body)
    }

    fn post_visit_query(&mut self, _query: &Query) -> Flow {
        self.tracker.leave_query();
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> Flow {
        if select.into.is_some() {
            return refuse("`SELECT … INTO` writes");
        }
        let has_extras = select.top.is_some()
            || !select.lateral_views.is_empty()
            || select.prewhere.is_some()
            || !select.connect_by.is_empty()
            || !select.cluster_by.is_empty()
            || !select.distribute_by.is_empty()
            || !select.sort_by.is_empty()
            || select.qualify.is_some()
            || select.value_table_mode.is_some()
            || select.select_modifiers.is_some()
            || select.exclude.is_some()
            || select.flavor != SelectFlavor::Standard
            || !select.optimizer_hints.is_empty();
        if has_extras {
            return refuse("this clause is not on the list");
        }
        flow(self.tracker.enter_select(select))
    }

    fn post_visit_select(&mut self, _select: &Select) -> Flow {
        self.tracker.leave_select();
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> Flow {
        match factor {
            TableFactor::Table {
                args: None,
                with_hints,
                version: None,
                partitions,
                with_ordinality: false,
                json_path: None,
                sample: None,
                ..
            } if with_hints.is_empty() && partitions.is_empty() => flow(self.tracker.table_factor(factor)),
            TableFactor::Derived { lateral: false, sample: None, .. } | TableFactor::NestedJoin { .. } => {
                flow(self.tracker.table_factor(factor))
            }
            _ => refuse("table functions are not accepted"),
        }
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> Flow {
        if matches!(self.names, Dialect::Postgres { .. }) {
            postgres_gate::check_relation(relation)?;
            return flow(self.tracker.relation(relation));
        }
        let name = relation.to_string().to_ascii_lowercase().replace(['"', '`', '[', ']'], "");
        let schema_table = name.rsplit('.').next().unwrap_or("");
        if schema_table.starts_with("sqlite_") || schema_table.starts_with("pragma_") {
            return refuse(format!("`{schema_table}` is not data"));
        }
        flow(self.tracker.relation(relation))
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> Flow {
        self.tracker.expr(expr);
        let functions: &[&str] = match self.names {
            Dialect::Postgres { .. } => {
                if let Some(answer) = postgres_gate::check_expr(expr) {
                    return answer;
                }
                &postgres_gate::FUNCTIONS
            }
            Dialect::Sqlite => &FUNCTIONS,
        };
        match expr {
            Expr::Function(function) => {
                let name = function.name.to_string().to_ascii_lowercase();
                if !functions.contains(&name.as_str()) {
                    return refuse(format!("the function `{name}` is not on the list"));
                }
                match function.args {
                    FunctionArguments::None | FunctionArguments::List(_) => ControlFlow::Continue(()),
                    FunctionArguments::Subquery(_) => refuse("a function over a query is not accepted"),
                }
            }
            Expr::Identifier(_)
            | Expr::CompoundIdentifier(_)
            | Expr::IsFalse(_)
            | Expr::IsNotFalse(_)
            | Expr::IsTrue(_)
            | Expr::IsNotTrue(_)
            | Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::IsDistinctFrom(..)
            | Expr::IsNotDistinctFrom(..)
            | Expr::InList { .. }
            | Expr::InSubquery { .. }
            | Expr::Between { .. }
            | Expr::BinaryOp { .. }
            | Expr::Like { .. }
            | Expr::UnaryOp { .. }
            | Expr::Cast { .. }
            | Expr::Collate { .. }
            | Expr::Substring { .. }
            | Expr::Trim { .. }
            | Expr::Nested(_)
            | Expr::Value(_)
            | Expr::Case { .. }
            | Expr::Exists { .. }
            | Expr::Subquery(_)
            | Expr::Tuple(_)
            | Expr::Wildcard(_)
            | Expr::QualifiedWildcard(..) => ControlFlow::Continue(()),
            _ => refuse("this expression is not on the list"),
        }
    }
}

fn set_expr(body: &SetExpr) -> Flow {
    match body {
        // Nested queries are visited by themselves.
        SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::Values(_) => ControlFlow::Continue(()),
        SetExpr::SetOperation { left, right, .. } => {
            set_expr(left)?;
            set_expr(right)
        }
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
            refuse("a query that writes is no SELECT")
        }
        SetExpr::Table(_) => refuse("`TABLE …` is not accepted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(sql: &str) -> Option<ReasonCode> {
        admit_select(sql, Dialect::Sqlite).err().map(|reason| reason.code())
    }

    fn reads(sql: &str) -> (Vec<String>, Vec<String>) {
        let reads = admit_select(sql, Dialect::Sqlite).unwrap_or_else(|reason| panic!("{sql}: {reason}"));
        let columns = reads.columns().map(|(table, column)| format!("{table}.{column}"));
        (reads.tables().map(str::to_owned).collect(), columns.collect())
    }

    #[test]
    fn plain_selects_pass_and_say_what_they_read() {
        for (sql, tables, columns) in [
            ("SELECT 1", "", ""),
            ("select name from Customers where ID = ?1;", "customers", "customers.id customers.name"),
            (
                "WITH recent AS (SELECT * FROM orders WHERE placed > date('now','-7 day')) \
                 SELECT c.name, count(*) FROM customers c JOIN recent r ON r.customer = c.id \
                 GROUP BY c.name HAVING count(*) > 1 ORDER BY 2 DESC LIMIT 5 OFFSET 1",
                "customers orders",
                "customers.id customers.name orders.* orders.placed",
            ),
            (
                "SELECT a FROM t UNION ALL SELECT b FROM main.\"U\" WHERE b IN (SELECT c FROM v)",
                "t u v",
                "t.a u.b u.c v.c",
            ),
            (
                "SELECT CASE WHEN a LIKE 'x%' THEN upper(a) ELSE trim(b) END FROM t ORDER BY d",
                "t",
                "t.a t.b t.d",
            ),
            ("SELECT sum(x) OVER (PARTITION BY y ORDER BY z) FROM t", "t", "t.x t.y t.z"),
            ("SELECT count(*) FROM t", "t", ""),
            ("SELECT total FROM (SELECT sum(x) AS total FROM t) AS sums", "t", "t.x"),
            ("SELECT sums.total FROM (SELECT sum(x) AS total FROM t) AS sums", "t", "t.x"),
        ] {
            let (read_tables, read_columns) = reads(sql);
            assert_eq!(
                (read_tables.join(" "), read_columns.join(" ")),
                (tables.into(), columns.into()),
                "{sql}"
            );
        }
    }

    /// Whatever could be meant is stated; a query cannot read a column that the policy did not hear of.
    #[test]
    fn a02_nothing_is_read_that_is_not_stated() {
        for (sql, expected) in [
            ("SELECT * FROM customers", "customers.*"),
            ("SELECT c.* FROM customers c", "customers.*"),
            ("SELECT rowid FROM customers", "customers.*"),
            ("SELECT customers.oid FROM customers", "customers.*"),
            ("SELECT c FROM customers c", "customers.*"),
            ("SELECT count(c.email) FROM customers AS c", "customers.email"),
            ("SELECT \"EMAIL\" FROM [customers]", "customers.email"),
            ("SELECT main.customers.email FROM main.customers", "customers.email"),
            ("SELECT 1 FROM customers NATURAL JOIN orders", "customers.*"),
            ("SELECT 1 FROM customers JOIN orders USING (email)", "customers.email"),
            ("SELECT 1 FROM (customers JOIN orders USING (email))", "customers.email"),
            ("SELECT 1 FROM customers ORDER BY email", "customers.email"),
            ("SELECT 1 FROM customers GROUP BY 1 HAVING max(email) > 'a'", "customers.email"),
            ("SELECT (SELECT email) FROM customers", "customers.email"),
            ("SELECT 1 FROM customers ORDER BY (SELECT email)", "customers.email"),
            (
                "SELECT 1 FROM customers WHERE EXISTS (SELECT 1 FROM orders WHERE email = item)",
                "customers.email",
            ),
            ("SELECT 1 FROM customers c WHERE 1 IN (SELECT c.email FROM orders)", "customers.email"),
            ("SELECT x FROM (SELECT email AS x FROM customers)", "customers.email"),
            ("WITH c(x) AS (SELECT email FROM customers) SELECT x FROM c", "customers.email"),
            ("WITH customers AS (SELECT * FROM customers) SELECT * FROM customers", "customers.*"),
            ("SELECT 1 FROM (WITH customers AS (SELECT 1) SELECT * FROM customers), customers", "customers"),
            ("SELECT sum(1) OVER w FROM customers WINDOW w AS (ORDER BY email)", "customers.email"),
            ("SELECT count(*) FILTER (WHERE email > 'a') FROM customers", "customers.email"),
            ("SELECT 1 FROM orders UNION SELECT email FROM customers", "customers.email"),
            ("SELECT 1 UNION VALUES ((SELECT email FROM customers))", "customers.email"),
            ("SELECT 1 FROM orders LIMIT (SELECT email FROM customers)", "customers.email"),
        ] {
            let (tables, columns) = reads(sql);
            assert!(
                tables.iter().chain(&columns).any(|read| read == expected),
                "{sql}: {tables:?} {columns:?}"
            );
        }
        assert_eq!(code("SELECT 1 FROM \"other.customers\""), Some(ReasonCode::SqlNotReadOnly));
    }

    #[test]
    fn what_would_be_too_many_facts_is_refused() {
        let columns: Vec<String> = (0..40).map(|number| format!("c{number}")).collect();
        let tables: Vec<String> = (0..40).map(|number| format!("t{number}")).collect();
        let sql = format!("SELECT {} FROM {}", columns.join(", "), tables.join(", "));
        assert_eq!(code(&sql), Some(ReasonCode::SqlUnparsable));
    }

    #[test]
    fn a01_second_statements() {
        assert_eq!(code("SELECT 1; DROP TABLE x"), Some(ReasonCode::SqlMultiStatement));
        assert_eq!(code("SELECT 1; SELECT 2"), Some(ReasonCode::SqlMultiStatement));
        assert_eq!(code(""), Some(ReasonCode::SqlUnparsable));
        assert_eq!(code(";"), Some(ReasonCode::SqlUnparsable));
    }

    #[test]
    fn a02_whatever_is_not_a_plain_select() {
        for sql in [
            "DELETE FROM t",
            "UPDATE t SET a = 1",
            "INSERT INTO t VALUES (1)",
            "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
            "SELECT * INTO y FROM t",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT load_extension('x')",
            "SELECT writefile('x', 'y')",
            "EXPLAIN ANALYZE DELETE FROM t",
            "EXPLAIN SELECT 1",
            "SELECT * FROM t FOR UPDATE",
            "PRAGMA journal_mode = DELETE",
            "ATTACH DATABASE 'x' AS y",
            "DETACH y",
            "VACUUM",
            "CREATE TABLE y AS SELECT 1",
            "DROP TABLE t",
            "ALTER TABLE t ADD c",
            "BEGIN",
            "SELECT * FROM pragma_table_info('t')",
            "SELECT * FROM sqlite_master",
            "SELECT * FROM main.sqlite_schema",
            "SELECT * FROM generate_series(1, 1000000000)",
            "SELECT randomblob(1000000000)",
            "COPY t TO PROGRAM 'sh'",
        ] {
            let code = code(sql);
            assert!(
                matches!(code, Some(ReasonCode::SqlNotReadOnly | ReasonCode::SqlUnparsable)),
                "{sql}: {code:?}"
            );
        }
    }

    #[test]
    fn a03_dialect_tricks() {
        for sql in [
            "SELECT 1 /*!50000 UNION SELECT password FROM users */",
            "SELECT 1 -- ; DROP TABLE x",
            "SELECT /* */ 1",
            "SELECT 'unclosed",
            "SELECT \u{ff07}x\u{ff07}; DROP TABLE y",
        ] {
            let code = code(sql);
            assert!(
                matches!(
                    code,
                    Some(
                        ReasonCode::SqlUnparsable
                            | ReasonCode::SqlNotReadOnly
                            | ReasonCode::SqlMultiStatement
                    )
                ),
                "{sql}: {code:?}"
            );
        }
        // SQLite knows no backslash escapes: to it, and so to the gate, this is one text.
        assert_eq!(code("SELECT '\\''; DROP TABLE x --'"), None);
        let deep = format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000));
        assert_eq!(code(&deep), Some(ReasonCode::SqlUnparsable));
    }
}
