//! What the SQL gate asks of a query for PostgreSQL besides.
//!
//! PostgreSQL has functions that read files, open connections and change settings, so functions are on a list, and
//! types that can be cast to as well. Forms that PostgreSQL's lexer and ours might read in two ways are refused.

use sqlparser::{
    ast::{BinaryOperator, DataType, Expr, ObjectName},
    tokenizer::{Token, Word},
};

use super::sql_gate::{Flow, refuse};

/// Functions of PostgreSQL that read nothing but their arguments, change nothing, and do not wait.
pub(super) const FUNCTIONS: [&str; 78] = [
    "abs",
    "age",
    "array_agg",
    "avg",
    "bit_length",
    "bool_and",
    "bool_or",
    "btrim",
    "ceil",
    "ceiling",
    "char_length",
    "character_length",
    "coalesce",
    "concat",
    "concat_ws",
    "count",
    "cume_dist",
    "current_date",
    "current_timestamp",
    "date",
    "date_part",
    "date_trunc",
    "dense_rank",
    "every",
    "first_value",
    "floor",
    "greatest",
    "initcap",
    "json_agg",
    "jsonb_agg",
    "lag",
    "last_value",
    "lead",
    "least",
    "left",
    "length",
    "localtimestamp",
    "lower",
    "ltrim",
    "make_date",
    "max",
    "md5",
    "min",
    "mod",
    "mode",
    "now",
    "nth_value",
    "ntile",
    "nullif",
    "octet_length",
    "percent_rank",
    "percentile_cont",
    "percentile_disc",
    "position",
    "rank",
    "replace",
    "reverse",
    "right",
    "round",
    "row_number",
    "rtrim",
    "sign",
    "split_part",
    "starts_with",
    "stddev",
    "string_agg",
    "strpos",
    "substr",
    "substring",
    "sum",
    "to_char",
    "to_date",
    "to_timestamp",
    "translate",
    "trim",
    "trunc",
    "upper",
    "variance",
];

/// What operators are made of; PostgreSQL takes the longest run of these for one.
const OPERATOR_CHARS: &str = "+-*/<>=~!@#%^&|?";

/// Operators of PostgreSQL's own. Others may be anybody's functions.
const OPERATORS: [&str; 35] = [
    "", "!=", "!~", "!~*", "!~~", "!~~*", "#", "#>", "#>>", "%", "&", "&&", "*", "+", "-", "->", "->>", "/",
    "<", "<<", "<=", "<>", "<@", "=", ">", ">=", ">>", "?", "?&", "@>", "^", "|", "||", "~", "~*",
];

/// Longest name; PostgreSQL cuts longer ones off, and then they mean something else (`NAMEDATALEN`, less one).
const NAME_BYTES_MAX: usize = 63;

/// Refuses what PostgreSQL's lexer might read in another way than ours.
///
/// # Errors
/// What was found.
pub(super) fn check_tokens(tokens: &[Token]) -> Result<(), String> {
    // The text between quotes, which is the same to both.
    let mut bare = String::new();
    for token in tokens {
        match token {
            Token::SingleQuotedString(text) if !text.contains('\0') => bare.push('\''),
            Token::Word(Word { value, .. }) if value.len() > NAME_BYTES_MAX => {
                return Err(format!("a name is longer than {NAME_BYTES_MAX} bytes"));
            }
            Token::Word(Word { value, quote_style: Some('"'), .. }) if !value.contains('\0') => {
                bare.push('"');
            }
            Token::Placeholder(name) => {
                let number = name.strip_prefix('$').unwrap_or_default();
                if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(format!("`{name}` is no parameter; they are `$1`, `$2`, …"));
                }
                bare.push_str(name);
            }
            Token::SingleQuotedString(_)
            | Token::DollarQuotedString(_)
            | Token::EscapedStringLiteral(_)
            | Token::UnicodeStringLiteral(_)
            | Token::NationalStringLiteral(_)
            | Token::HexStringLiteral(_)
            | Token::SingleQuotedByteStringLiteral(_)
            | Token::CustomBinaryOperator(_)
            | Token::AtSign
            | Token::Colon => {
                return Err(format!(
                    "`{token}` is not accepted; texts are written `'…'` or, better, as `$1`"
                ));
            }
            _ => bare.push_str(&token.to_string()),
        }
    }
    // PostgreSQL folds and separates by ASCII alone.
    if let Some(other) = bare.chars().find(|one| !one.is_ascii() || matches!(one, '\\' | '`' | '\0')) {
        return Err(format!("{other:?} is not accepted outside of quotes"));
    }
    let is_known =
        |run: &str| OPERATORS.contains(&run) || OPERATORS.contains(&run.trim_end_matches(['+', '-']));
    let runs = bare.split(|one| !OPERATOR_CHARS.contains(one)).filter(|run| !run.is_empty());
    if let Some(run) = runs.into_iter().find(|run| !is_known(run)) {
        return Err(format!("`{run}` is not on the list of operators"));
    }
    let lower = bare.to_ascii_lowercase();
    match ["--", "/*", "u&\"", "u&'"].into_iter().find(|form| lower.contains(form)) {
        Some(form) => Err(format!("`{form}` is not accepted")),
        None => Ok(()),
    }
}

/// Refuses the tables of the system: they tell of everything else, and some of them of other sessions.
pub(super) fn check_relation(relation: &ObjectName) -> Flow {
    for part in &relation.0 {
        let Some(ident) = part.as_ident() else { return refuse("a table is named by its name") };
        let name = ident.value.to_ascii_lowercase();
        if name.starts_with("pg_") || name == "information_schema" {
            return refuse(format!("`{name}` is not data"));
        }
        // `FROM ONLY t` is a table `t` to PostgreSQL.
        if ident.quote_style.is_none() && ["only", "lateral"].contains(&name.as_str()) {
            return refuse(format!("`{name}` is not accepted"));
        }
    }
    Flow::Continue(())
}

/// The answer to an expression where PostgreSQL's differs; `None` leaves it to the gate.
pub(super) fn check_expr(expr: &Expr) -> Option<Flow> {
    Some(match expr {
        Expr::BinaryOp {
            op: BinaryOperator::Custom(_) | BinaryOperator::PGCustomBinaryOperator(_), ..
        } => refuse("operators by name are not accepted"),
        Expr::Cast { data_type, .. } if !is_plain(data_type) => {
            refuse(format!("a cast to `{data_type}` is not on the list"))
        }
        Expr::TypedString(typed) if is_plain(&typed.data_type) && !typed.uses_odbc_syntax => {
            Flow::Continue(())
        }
        Expr::ILike { .. }
        | Expr::AtTimeZone { .. }
        | Expr::Extract { .. }
        | Expr::Ceil { .. }
        | Expr::Floor { .. }
        | Expr::Position { .. }
        | Expr::Interval(_) => Flow::Continue(()),
        _ => return None,
    })
}

/// Whether a type is a plain value, and not a way to look names up (`regclass`) or to run a conversion of somebody's.
fn is_plain(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::BigInt(None)
            | DataType::Bool
            | DataType::Boolean
            | DataType::Bytea
            | DataType::Char(_)
            | DataType::Character(_)
            | DataType::CharacterVarying(_)
            | DataType::Date
            | DataType::Decimal(_)
            | DataType::DoublePrecision
            | DataType::Float(_)
            | DataType::Float4
            | DataType::Float8
            | DataType::Int(None)
            | DataType::Int2(None)
            | DataType::Int4(None)
            | DataType::Int8(None)
            | DataType::Integer(None)
            | DataType::Interval { .. }
            | DataType::JSON
            | DataType::JSONB
            | DataType::Numeric(_)
            | DataType::Real
            | DataType::SmallInt(None)
            | DataType::Text
            | DataType::Time(..)
            | DataType::Timestamp(..)
            | DataType::Uuid
            | DataType::Varchar(_)
    )
}

#[cfg(test)]
mod tests {
    use writ_common::reason::ReasonCode;

    use crate::tools::sql_gate::{Dialect, admit_select};

    const NAMES: Dialect<'_> = Dialect::Postgres { schema: "public" };

    fn code(sql: &str) -> Option<ReasonCode> {
        admit_select(sql, NAMES).err().map(|reason| reason.code())
    }

    fn reads(sql: &str) -> String {
        let reads = admit_select(sql, NAMES).unwrap_or_else(|reason| panic!("{sql}: {reason}"));
        let tables = reads.tables().map(str::to_owned);
        let columns = reads.columns().map(|(table, column)| format!("{table}.{column}"));
        tables.chain(columns).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn plain_selects_say_what_they_read_in_postgresql_s_names() {
        for (sql, expected) in [
            ("SELECT 1", ""),
            ("SELECT Name FROM Customers WHERE ID = $1", "customers customers.id customers.name"),
            ("SELECT \"Name\" FROM \"Customers\"", "Customers Customers.Name"),
            ("SELECT c.email FROM public.customers AS c", "customers customers.email"),
            ("SELECT email FROM PUBLIC.customers", "customers customers.email"),
            ("SELECT email FROM \"PUBLIC\".customers", "PUBLIC.customers PUBLIC.customers.email"),
            ("SELECT email FROM hr.customers", "hr.customers hr.customers.email"),
            ("SELECT c FROM customers c", "customers customers.* customers.c"),
            ("SELECT length(c) FROM customers c", "customers customers.* customers.c"),
            ("SELECT ctid FROM customers", "customers customers.ctid"),
            ("SELECT oid FROM customers", "customers customers.oid"),
            ("SELECT c.n FROM customers AS c(i, n)", "customers customers.* customers.n"),
            ("SELECT DISTINCT ON (email) 1 FROM customers", "customers customers.email"),
            ("SELECT count(*) FILTER (WHERE email ILIKE 'a%') FROM customers", "customers customers.email"),
            (
                "SELECT extract(year FROM born), born AT TIME ZONE 'UTC', ceil(score), position('a' IN name) \
                 FROM customers",
                "customers customers.born customers.name customers.score",
            ),
            (
                "SELECT 1 FROM customers WHERE born > now() - INTERVAL '1 day' AND born < DATE '2030-01-01'",
                "customers customers.born",
            ),
            (
                "SELECT note ->> 'a', score::text, 'x' || name FROM customers",
                "customers customers.name customers.note customers.score",
            ),
            (
                "SELECT string_agg(name, ',' ORDER BY email) FROM customers",
                "customers customers.email customers.name",
            ),
            (
                "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY score) FROM customers",
                "customers customers.score",
            ),
            ("SELECT 1+-id, id<-1, count(*)-1 FROM customers", "customers customers.id"),
            ("SELECT current_date, 'it''s -- no /* comment'", ""),
        ] {
            assert_eq!(reads(sql), expected, "{sql}");
        }
    }

    #[test]
    fn a02_functions_of_postgresql_that_are_not_on_the_list() {
        for call in [
            "pg_read_file('/etc/passwd')",
            "pg_read_binary_file('/etc/passwd')",
            "pg_ls_dir('/')",
            "pg_stat_file('x')",
            "pg_sleep(100)",
            "pg_terminate_backend(1)",
            "pg_cancel_backend(1)",
            "pg_reload_conf()",
            "pg_advisory_lock(1)",
            "pg_notify('a', 'b')",
            "pg_logical_emit_message(true, 'a', 'b')",
            "dblink('host=evil.example', 'SELECT 1')",
            "dblink_connect('host=evil.example')",
            "lo_import('/etc/passwd')",
            "lo_export(1, '/tmp/x')",
            "lo_get(1)",
            "lo_from_bytea(0, 'x')",
            "set_config('transaction_read_only', 'off', false)",
            "current_setting('data_directory')",
            "query_to_xml('DELETE FROM t', true, true, '')",
            "table_to_xml('salaries', true, true, '')",
            "database_to_xml(true, true, '')",
            "cursor_to_xml('c', 1, true, true, '')",
            "ts_stat('SELECT password FROM users')",
            "nextval('s')",
            "setval('s', 1)",
            "currval('s')",
            "version()",
            "inet_server_addr()",
            "txid_current()",
            "has_table_privilege('salaries', 'SELECT')",
            "row_to_json(c)",
            "to_jsonb(c)",
            "email(c)",
            "repeat('x', 1000000000)",
            "lpad('x', 1000000000)",
            "generate_series(1, 1000000000)",
            "random()",
            "format('%s', 1)",
            "public.lower('x')",
            "pg_catalog.pg_sleep(1)",
            "\"pg_sleep\"(1)",
            "PG_SLEEP(1)",
            "current_user",
            "session_user",
        ] {
            for sql in [
                format!("SELECT {call} FROM c"),
                format!("SELECT 1 FROM c WHERE x = {call}"),
                format!("SELECT 1 FROM c ORDER BY {call}"),
                format!("WITH w AS (SELECT {call} FROM c) SELECT * FROM w"),
                format!("SELECT max(x) FILTER (WHERE 1 = {call}) FROM c"),
                format!("SELECT 1 LIMIT {call}"),
            ] {
                let code = code(&sql);
                assert!(
                    matches!(code, Some(ReasonCode::SqlNotReadOnly | ReasonCode::SqlUnparsable)),
                    "{sql}: {code:?}"
                );
            }
        }
    }

    #[test]
    fn a02_whatever_is_not_a_plain_select_of_data() {
        for sql in [
            "DELETE FROM t",
            "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
            "WITH x AS (UPDATE t SET a = 1 RETURNING *) SELECT * FROM x",
            "SELECT * INTO y FROM t",
            "SELECT * INTO TEMP y FROM t",
            "CREATE TABLE y AS SELECT 1",
            "SELECT * FROM t FOR UPDATE",
            "SELECT * FROM t FOR SHARE",
            "SELECT * FROM t FOR NO KEY UPDATE",
            "TABLE t",
            "COPY t TO PROGRAM 'sh'",
            "COPY (SELECT 1) TO '/tmp/x'",
            "EXPLAIN ANALYZE SELECT 1",
            "DO 'BEGIN END'",
            "CALL p()",
            "SET ROLE postgres",
            "RESET ALL",
            "SHOW ALL",
            "LISTEN x",
            "NOTIFY x",
            "PREPARE x AS SELECT 1",
            "EXECUTE x",
            "DECLARE c CURSOR FOR SELECT 1",
            "BEGIN",
            "ROLLBACK",
            "LOCK TABLE t",
            "VACUUM",
            "SELECT * FROM pg_shadow",
            "SELECT * FROM pg_catalog.pg_authid",
            "SELECT * FROM PG_CLASS",
            "SELECT * FROM \"pg_class\"",
            "SELECT * FROM information_schema.tables",
            "SELECT * FROM pg_temp.t",
            "SELECT * FROM pg_toast.pg_toast_1",
            "SELECT * FROM other.public.t",
            "SELECT * FROM ONLY t",
            "SELECT * FROM ONLY (t)",
            "SELECT * FROM t TABLESAMPLE SYSTEM (1)",
            "SELECT * FROM t, LATERAL (SELECT t.a) x",
            "SELECT * FROM generate_series(1, 10)",
            "SELECT * FROM pg_ls_dir('/')",
            "SELECT * FROM dblink('host=x', 'SELECT 1') AS x(a int)",
            "SELECT * FROM ROWS FROM (pg_ls_dir('/')) x",
            "SELECT * FROM unnest(ARRAY[1])",
            "SELECT * FROM XMLTABLE('/a' PASSING '<a/>' COLUMNS x int)",
            "SELECT (c).email FROM c",
            "SELECT ROW(c.*) FROM c",
            "SELECT ARRAY(SELECT email FROM c)",
            "SELECT 'salaries'::regclass",
            "SELECT CAST('pg_sleep' AS regproc)",
            "SELECT x::my_domain FROM t",
            "SELECT x::int[] FROM t",
            "SELECT regclass 'salaries'",
            "SELECT 1 OPERATOR(public.+) 1",
            "SELECT 1 @@@ 1",
            "SELECT a <-> b FROM t",
            "SELECT a |+| b FROM t",
        ] {
            let code = code(sql);
            assert!(
                matches!(code, Some(ReasonCode::SqlNotReadOnly | ReasonCode::SqlUnparsable)),
                "{sql}: {code:?}"
            );
        }
        assert_eq!(code("SELECT 1; DROP TABLE t"), Some(ReasonCode::SqlMultiStatement));
    }

    #[test]
    fn a03_forms_that_could_be_read_in_two_ways() {
        let long = format!("SELECT {} FROM customers", "a".repeat(64));
        for sql in [
            "SELECT E'\\'; DROP TABLE t; --'",
            "SELECT $$x$$",
            "SELECT $tag$ ' $tag$",
            "SELECT U&'\\0061'",
            "SELECT U&\"e\\006dail\" FROM customers",
            "SELECT u&\"e!006dail\" UESCAPE '!' FROM customers",
            "SELECT N'x'",
            "SELECT 1 --1",
            "SELECT 1 +--1\n 2",
            "SELECT /* x */ 1",
            "SELECT /* /* */ 1 */ 2",
            "SELECT é FROM customers",
            "SELECT\u{a0}1",
            "SELECT\u{3000}email FROM customers",
            "SELECT `email` FROM customers",
            "SELECT [email] FROM customers",
            "SELECT ?1",
            "SELECT :name",
            "SELECT @name FROM customers",
            "SELECT @ name FROM customers",
            "SELECT 'a\0b'",
            long.as_str(),
        ] {
            let code = code(sql);
            assert!(
                matches!(code, Some(ReasonCode::SqlNotReadOnly | ReasonCode::SqlUnparsable)),
                "{sql}: {code:?}"
            );
        }
        // Standard texts have no escapes, and the session's setting says so.
        assert_eq!(code("SELECT '\\'"), None);
    }
}
