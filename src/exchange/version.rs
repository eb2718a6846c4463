//! One version of an exchanger, as it is kept in memory and as it is listed.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    About, Exchanger, Parameters,
    statistics::{Counts, Statistics},
};
use crate::{
    access::{Rights, Role},
    error::Result,
};

/// Whoever runs a version holds it, so that it is listed until the last stream that uses it has ended.
pub(super) struct Version {
    owner: Option<String>,
    /// As it was given.
    pub(super) description: Option<String>,
    /// What it declares.
    pub(super) params: Parameters,
    exchanger: Result<Arc<dyn Exchanger>, Broken>,
    pub(super) statistics: Arc<Statistics>,
}

/// Why one that was kept does not work any more.
pub(super) struct Broken {
    pub(super) kind: &'static str,
    pub(super) why: String,
}

/// What `list_exchanges` tells of one version of an exchanger.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct Listed {
    pub name: String,
    /// Built-in ones have none.
    pub version: Option<u64>,
    pub kind: &'static str,
    pub description: String,
    pub owner: Option<String>,
    pub input: String,
    pub output: String,
    pub streams: bool,
    pub params: Map<String, Value>,
    #[serde(flatten)]
    pub counts: Counts,
    /// Whether it was replaced or dropped, and is here only because streams still use it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub retired: bool,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
}

impl Version {
    pub(super) fn new(
        owner: Option<String>,
        description: Option<String>,
        params: Parameters,
        exchanger: Result<Arc<dyn Exchanger>, Broken>,
    ) -> Arc<Self> {
        Arc::new(Self { owner, description, params, exchanger, statistics: Arc::default() })
    }

    /// The exchanger, or why it does not work.
    pub(super) fn exchanger(&self) -> Result<Arc<dyn Exchanger>, &str> {
        self.exchanger.as_ref().map(Arc::clone).map_err(|broken| broken.why.as_str())
    }

    /// Whoever registered it may, and admins.
    pub(super) fn may_change(&self, rights: &Rights, name: &str) -> Result<()> {
        if rights.role >= Role::Admin || self.owner.as_ref() == Some(&rights.principal().to_string()) {
            return Ok(());
        }
        let owner = self.owner.as_deref().unwrap_or_default();
        Err(rights.denied("owner", format!("the exchanger {name} is {owner}'s; its owner and admins may change it")))
    }

    /// For a caller with these rights: of one that reads tables they may not read, its text is not told.
    pub(super) fn listed(&self, rights: &Rights, name: String, number: Option<u64>, retired: bool) -> Listed {
        let (kind, about, broken) = match &self.exchanger {
            Ok(exchanger) => (exchanger.kind().word(), exchanger.about().clone(), None),
            Err(Broken { kind, why }) => (*kind, About::default(), Some(why.clone())),
        };
        let About { mut description, mut input, output, streams, params, tables } = about;
        let may_read = |table: &String| match table.split('.').collect::<Vec<_>>().as_slice() {
            [table] => rights.may_read(None, "main", table),
            [schema, table] => rights.may_read(None, schema, table),
            [.., catalog, schema, table] => rights.may_read(Some(catalog), schema, table),
            [] => false,
        };
        let told = rights.read_all() || tables.iter().all(may_read);
        if !told {
            (description, input) = (String::new(), "columns; it reads tables without a grant".into());
        }
        Listed {
            name,
            version: number,
            kind,
            description: self.description.clone().filter(|_| told).unwrap_or(description),
            owner: self.owner.clone(),
            input,
            output,
            streams,
            params,
            counts: self.statistics.read(),
            retired,
            broken,
        }
    }
}
