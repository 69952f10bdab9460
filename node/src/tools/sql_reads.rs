//! What a SELECT reads, as facts for the policy.
//!
//! Only the text of the query is known here, no table is looked up. So where a name could mean several columns, all
//! of them are stated: a column without qualifier belongs to every table of its own SELECT and of those around it.
//! More may be stated than is read, and never less; that is why policies list what may be read, and not what may
//! not. `*` stands for all columns.

use std::collections::{BTreeMap, BTreeSet};

use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, JoinConstraint, JoinOperator,
    ObjectName, Query, Select, SelectItem, SelectItemQualifiedWildcardKind, TableAlias, TableFactor,
    TableWithJoins,
};
use writ_common::datalog::{Predicate, Term};

/// Most tables, and most pairs of table and column, that one query may name.
pub const READS_MAX: usize = 512;

/// The column that stands for every column.
const EVERY: &str = "*";

/// How a database reads names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect<'a> {
    /// PostgreSQL, whose search path is this one schema.
    Postgres {
        /// The schema; its tables are named without it.
        schema: &'a str,
    },
    /// SQLite.
    Sqlite,
}

impl Dialect<'_> {
    /// The one form of a name, by which it is compared.
    fn fold(self, ident: &Ident) -> String {
        match self {
            Self::Postgres { .. } if ident.quote_style.is_some() => ident.value.clone(),
            Self::Postgres { .. } => ident.value.to_lowercase(),
            Self::Sqlite => ident.value.to_ascii_lowercase(),
        }
    }

    /// The name of a table as policies write it; `None` if it has no certain one.
    fn table(self, name: &ObjectName) -> Option<String> {
        let parts: Vec<String> =
            name.0.iter().map(|part| part.as_ident().map(|ident| self.fold(ident))).collect::<Option<_>>()?;
        // A dot within quotes would look like a schema.
        if parts.iter().any(|part| part.is_empty() || part.contains(['.', '"', '\0'])) {
            return None;
        }
        let home = match self {
            Self::Postgres { schema } => schema,
            Self::Sqlite => "main",
        };
        match parts.as_slice() {
            [table] => Some(table.clone()),
            [schema, table] if schema == home => Some(table.clone()),
            [schema, table] => Some(format!("{schema}.{table}")),
            _ => None,
        }
    }

    fn column(self, ident: &Ident) -> String {
        let name = self.fold(ident);
        // Other names for the primary key, whatever that is called.
        let is_key = self == Self::Sqlite && ["rowid", "oid", "_rowid_"].contains(&name.as_str());
        if is_key { EVERY.to_owned() } else { name }
    }
}

/// Tables and columns that a query reads, or may read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    tables: BTreeSet<String>,
    columns: BTreeSet<(String, String)>,
}

impl Reads {
    /// The tables.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.tables.iter().map(String::as_str)
    }

    /// The columns, each with its table.
    pub fn columns(&self) -> impl Iterator<Item = (&str, &str)> {
        self.columns.iter().map(|(table, column)| (table.as_str(), column.as_str()))
    }

    /// `reads_table(name)` and `reads_column(table, column)`.
    #[must_use]
    pub fn facts(&self) -> Vec<Predicate> {
        let tables = self.tables().map(|table| Predicate::new("reads_table", [Term::str(table)]));
        let columns = self
            .columns()
            .map(|(table, column)| Predicate::new("reads_column", [Term::str(table), Term::str(column)]));
        tables.chain(columns).collect()
    }

    /// Whether this column was stated to the policy; the empty name is a table of which no column is taken.
    #[must_use]
    pub fn covers(&self, table: &str, column: &str) -> bool {
        let has = |column: &str| self.columns.contains(&(table.to_owned(), column.to_owned()));
        self.tables.contains(table) && (column.is_empty() || has(column) || has(EVERY))
    }

    /// Whether this table or view was stated to the policy.
    #[must_use]
    pub fn covers_table(&self, table: &str) -> bool {
        self.tables.contains(table)
    }
}

/// Why the names of a query are of no certain meaning.
pub(super) type Unsure = String;

/// Follows the visitor through a query.
pub(super) struct Tracker<'a> {
    dialect: Dialect<'a>,
    frames: Vec<Frame>,
    /// Bodies of common table expressions, by address, with those of the same WITH that they see.
    bodies: Vec<(*const Query, BTreeSet<String>)>,
    /// What stands before a dot: every table it may be; none for results of queries.
    qualifiers: BTreeMap<String, BTreeSet<String>>,
    bare: BTreeSet<String>,
    qualified: BTreeSet<(String, String)>,
    reads: Reads,
}

/// A query, or one SELECT of it.
#[derive(Default)]
struct Frame {
    is_select: bool,
    is_common: bool,
    /// Common table expressions seen from around this query, and from within.
    common_around: BTreeSet<String>,
    common: BTreeSet<String>,
    tables: BTreeSet<String>,
    /// Names without qualifier that may be columns of these tables.
    names: BTreeSet<String>,
    /// Names from within that are columns of these tables or of those further out.
    passed: BTreeSet<String>,
}

impl<'a> Tracker<'a> {
    pub(super) fn new(dialect: Dialect<'a>) -> Self {
        Self {
            dialect,
            frames: Vec::new(),
            bodies: Vec::new(),
            qualifiers: BTreeMap::new(),
            bare: BTreeSet::new(),
            qualified: BTreeSet::new(),
            reads: Reads::default(),
        }
    }

    pub(super) fn enter_query(&mut self, query: &Query) {
        let seen = self.bodies.iter().find(|(body, _)| std::ptr::eq(*body, query));
        let mut frame = Frame { is_common: seen.is_some(), ..Frame::default() };
        frame.common_around = match (seen, self.frames.last()) {
            (Some((_, seen)), Some(around)) => around.common_around.union(seen).cloned().collect(),
            (None, Some(around)) => around.common.clone(),
            (_, None) => BTreeSet::new(),
        };
        frame.common = frame.common_around.clone();
        if let Some(with) = &query.with {
            // A name is that of a common table expression only where every reading agrees on it: PostgreSQL lets an
            // expression see those before it, and itself if the WITH is recursive; SQLite lets it see more.
            let mut before = BTreeSet::new();
            for common in &with.cte_tables {
                let name = self.dialect.fold(&common.alias.name);
                let mut seen = before.clone();
                if with.recursive {
                    seen.insert(name.clone());
                }
                self.bodies.push((std::ptr::from_ref(&*common.query), seen));
                before.insert(name);
            }
            frame.common.extend(before);
        }
        self.frames.push(frame);
    }

    pub(super) fn leave_query(&mut self) {
        let Some(frame) = self.frames.pop() else { return };
        self.state(&frame.tables, &frame.names);
        let Some(around) = self.frames.last_mut() else { return };
        if around.is_select || frame.is_common {
            around.passed.extend(frame.names);
            around.passed.extend(frame.passed);
        } else {
            // One side of a UNION in brackets, or a query within ORDER BY.
            around.names.extend(frame.names);
            around.names.extend(frame.passed);
            around.tables.extend(frame.tables);
        }
    }

    /// # Errors
    /// If the SELECT joins in a way that is not understood.
    pub(super) fn enter_select(&mut self, select: &Select) -> Result<(), Unsure> {
        let common = self.frames.last().map(|around| around.common.clone()).unwrap_or_default();
        self.frames.push(Frame {
            is_select: true,
            common_around: common.clone(),
            common,
            ..Frame::default()
        });
        for item in &select.projection {
            match item {
                SelectItem::Wildcard(_) => self.name(EVERY.to_owned()),
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                    self.wildcard_of(name);
                }
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::Expr(_), _) => {
                    return Err("`.*` behind an expression is not accepted".to_owned());
                }
                _ => {}
            }
        }
        select.from.iter().try_for_each(|from| self.joins(from))
    }

    pub(super) fn leave_select(&mut self) {
        let Some(frame) = self.frames.pop() else { return };
        self.state(&frame.tables, &frame.names);
        self.state(&frame.tables, &frame.passed);
        let Some(around) = self.frames.last_mut() else { return };
        around.tables.extend(frame.tables);
        around.passed.extend(frame.names);
        around.passed.extend(frame.passed);
    }

    fn joins(&mut self, from: &TableWithJoins) -> Result<(), Unsure> {
        for join in &from.joins {
            let (JoinOperator::Join(constraint)
            | JoinOperator::Inner(constraint)
            | JoinOperator::Left(constraint)
            | JoinOperator::LeftOuter(constraint)
            | JoinOperator::Right(constraint)
            | JoinOperator::RightOuter(constraint)
            | JoinOperator::FullOuter(constraint)
            | JoinOperator::CrossJoin(constraint)) = &join.join_operator
            else {
                return Err("this kind of join is not on the list".to_owned());
            };
            match constraint {
                JoinConstraint::On(_) | JoinConstraint::None => {}
                // Compares whatever columns both sides have.
                JoinConstraint::Natural => self.name(EVERY.to_owned()),
                JoinConstraint::Using(columns) => {
                    for column in columns.iter().filter_map(last_of) {
                        self.name(self.dialect.column(column));
                    }
                }
            }
        }
        Ok(())
    }

    /// # Errors
    /// If the source of rows is not understood.
    pub(super) fn table_factor(&mut self, factor: &TableFactor) -> Result<(), Unsure> {
        match factor {
            TableFactor::Table { name, alias, .. } => {
                let table = self.base_table(name)?;
                let written = alias.as_ref().map(|alias| &alias.name).or_else(|| last_of(name));
                if let Some(written) = written {
                    let known = self.qualifiers.entry(self.dialect.fold(written)).or_default();
                    known.extend(table.clone());
                }
                // Columns under other names: which is which only the database knows.
                if alias.as_ref().is_some_and(|alias| !alias.columns.is_empty())
                    && let Some(table) = table
                {
                    self.state(&[table].into(), &[EVERY.to_owned()].into());
                }
                Ok(())
            }
            TableFactor::Derived { alias, .. } => {
                self.result(alias.as_ref());
                Ok(())
            }
            TableFactor::NestedJoin { table_with_joins, alias } => {
                if alias.is_some() {
                    return Err("a name for a join in brackets is not accepted".to_owned());
                }
                self.joins(table_with_joins)
            }
            _ => Ok(()),
        }
    }

    fn result(&mut self, alias: Option<&TableAlias>) {
        if let Some(alias) = alias {
            self.qualifiers.entry(self.dialect.fold(&alias.name)).or_default();
        }
    }

    /// # Errors
    /// If the name is of no certain table.
    pub(super) fn relation(&mut self, name: &ObjectName) -> Result<(), Unsure> {
        let Some(table) = self.base_table(name)? else { return Ok(()) };
        if self.reads.tables.len() <= READS_MAX {
            self.reads.tables.insert(table.clone());
        }
        if let Some(frame) = self.frames.last_mut() {
            frame.tables.insert(table);
        }
        Ok(())
    }

    /// The table of this name; none if the name is that of a common table expression.
    fn base_table(&self, name: &ObjectName) -> Result<Option<String>, Unsure> {
        let table =
            self.dialect.table(name).ok_or_else(|| format!("`{name}` is no name of a certain table"))?;
        let is_common = name.0.len() == 1
            && self.frames.last().is_some_and(|frame| frame.common.contains(table.as_str()));
        Ok((!is_common).then_some(table))
    }

    pub(super) fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::Identifier(ident) => {
                self.bare.insert(self.dialect.fold(ident));
                self.name(self.dialect.column(ident));
            }
            Expr::CompoundIdentifier(parts) => {
                if let [.., qualifier, column] = parts.as_slice() {
                    let pair = (self.dialect.fold(qualifier), self.dialect.column(column));
                    self.qualified.insert(pair);
                }
            }
            Expr::QualifiedWildcard(name, _) => self.wildcard_of(name),
            Expr::Function(function) => self.function(function),
            _ => {}
        }
    }

    fn function(&mut self, function: &Function) {
        let FunctionArguments::List(list) = &function.args else { return };
        for argument in &list.args {
            let (FunctionArg::Named { arg, .. }
            | FunctionArg::ExprNamed { arg, .. }
            | FunctionArg::Unnamed(arg)) = argument;
            match arg {
                FunctionArgExpr::QualifiedWildcard(name) => self.wildcard_of(name),
                FunctionArgExpr::WildcardWithOptions(_) => self.name(EVERY.to_owned()),
                // `count(*)` takes no column.
                FunctionArgExpr::Wildcard | FunctionArgExpr::Expr(_) => {}
            }
        }
    }

    fn wildcard_of(&mut self, name: &ObjectName) {
        if let Some(qualifier) = last_of(name) {
            self.qualified.insert((self.dialect.fold(qualifier), EVERY.to_owned()));
        }
    }

    fn name(&mut self, name: String) {
        if let Some(frame) = self.frames.last_mut() {
            frame.names.insert(name);
        }
    }

    fn state(&mut self, tables: &BTreeSet<String>, names: &BTreeSet<String>) {
        for table in tables {
            for name in names {
                if self.reads.columns.len() > READS_MAX {
                    return;
                }
                self.reads.columns.insert((table.clone(), name.clone()));
            }
        }
    }

    /// Everything that was read.
    ///
    /// # Errors
    /// If that is more than [`READS_MAX`].
    pub(super) fn finish(mut self) -> Result<Reads, Unsure> {
        for (qualifier, column) in std::mem::take(&mut self.qualified) {
            let tables = match self.qualifiers.get(&qualifier) {
                Some(tables) => tables.clone(),
                None => self.reads.tables.clone(),
            };
            self.state(&tables, &[column].into());
        }
        // PostgreSQL reads the name of a table in the place of a column as the whole row.
        for name in std::mem::take(&mut self.bare) {
            if let Some(tables) = self.qualifiers.get(&name).cloned() {
                self.state(&tables, &[EVERY.to_owned()].into());
            }
        }
        if self.reads.tables.len() > READS_MAX || self.reads.columns.len() > READS_MAX {
            return Err(format!(
                "it may read more than {READS_MAX} tables or columns; put the table's name before each column"
            ));
        }
        Ok(self.reads)
    }
}

fn last_of(name: &ObjectName) -> Option<&Ident> {
    name.0.last().and_then(|part| part.as_ident())
}
