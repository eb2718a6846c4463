//! Who has registered which exchanger in which versions; kept in the server's database where that is a file.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use futures::{StreamExt, stream};
use serde::Serialize;
use serde_json::{Map, Value};

#[cfg(feature = "wasm")]
use super::wasm::Modules;
use super::{
    About, Chain, Definition, Exchanger, Kind, Registration, Run, builtin,
    chain::{check_name, read_versioned},
    sql::Sandboxes,
    statistics::{Counts, Statistics},
    watch,
};
use crate::{
    access::{Rights, Role},
    config::Config,
    engine::{Engine, KeptExchanger},
    error::{Error, Result},
    stream::RecordBatchStream,
    telemetry::Metrics,
};

/// Bytes; a description is one line for people.
const MAX_DESCRIPTION: usize = 4096;

/// Kept definitions that are checked at once when a server starts.
const CHECKED_AT_ONCE: usize = 2;

/// The exchangers of one server, by name. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    built_in: BTreeMap<String, Registered>,
    registered: RwLock<BTreeMap<String, Versions>>,
    /// Held while one is registered or removed, so that memory and database say the same.
    changing: tokio::sync::Mutex<()>,
    engine: Arc<Engine>,
    sandboxes: Sandboxes,
    #[cfg(feature = "wasm")]
    modules: Modules,
    config: Config,
    metrics: Metrics,
}

/// By number; never empty.
type Versions = BTreeMap<u64, Registered>;

#[derive(Clone)]
struct Registered {
    owner: Option<String>,
    exchanger: Result<Arc<dyn Exchanger>, Broken>,
    statistics: Arc<Statistics>,
}

/// One that was kept and does not work any more.
#[derive(Clone)]
struct Broken {
    kind: &'static str,
    description: String,
    why: String,
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
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
}

impl Registry {
    /// With what the engine's database keeps. One that is broken is listed as such.
    pub async fn load(config: &Config, engine: Arc<Engine>, metrics: Metrics) -> Result<Self> {
        let sandboxes = Sandboxes::new(config, engine.clone());
        let built_in =
            builtin::all(&sandboxes).into_iter().map(|(name, exchanger)| (name, Registered::new(None, Ok(exchanger))));
        let registry = Self(Arc::new(Inner {
            built_in: built_in.collect(),
            registered: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
            sandboxes,
            #[cfg(feature = "wasm")]
            modules: Modules::new(&config.wasm),
            engine,
            config: config.clone(),
            metrics,
        }));
        if registry.0.engine.is_on_disk() {
            let kept = registry.0.engine.kept_exchangers().await?;
            let loading = kept.into_iter().map(|kept| registry.revive(kept));
            let loaded: Vec<_> = stream::iter(loading).buffered(CHECKED_AT_ONCE).collect().await;
            let mut names = registry.0.registered.write().unwrap_or_else(PoisonError::into_inner);
            for (name, version, registered) in loaded {
                names.entry(name).or_default().insert(version, registered);
            }
            registry.0.metrics.exchangers.set(names.len() as i64);
        }
        Ok(registry)
    }

    async fn revive(&self, kept: KeptExchanger) -> (String, u64, Registered) {
        let KeptExchanger { name, version, owner, description, definition } = kept;
        let definition: Result<Definition> = serde_json::from_str(&definition)
            .map_err(|error| Error::invalid(format!("its definition cannot be read: {error}")));
        let described = Some(description.clone()).filter(|text| !text.is_empty());
        let kind = definition.as_ref().map_or("unknown", |definition| definition.kind().word());
        let exchanger = match definition {
            Ok(definition) => self.build(definition, described).await,
            Err(error) => Err(error),
        };
        let exchanger = exchanger.map_err(|error| {
            let why = error.to_string();
            tracing::warn!(exchanger = name, version, why, "a kept exchanger does not work any more");
            Broken { kind, description, why }
        });
        (name, version, Registered::new(Some(owner), exchanger))
    }

    /// The one place that knows how each kind is made.
    async fn build(&self, definition: Definition, description: Option<String>) -> Result<Arc<dyn Exchanger>> {
        match definition {
            Definition::Sql { sql, params } => self.0.sandboxes.exchanger(&sql, params, description).await,
            #[cfg(feature = "wasm")]
            Definition::Wasm { module, params } => self.0.modules.exchanger(module, params, description).await,
            #[cfg(not(feature = "wasm"))]
            Definition::Wasm { .. } => Err(Error::Unsupported("this server was built without WebAssembly".into())),
        }
    }

    /// Registers an exchanger, or a new version of one; its number. Others see it from then on; what runs keeps its own.
    pub async fn register(&self, rights: &Rights, registration: Registration) -> Result<u64> {
        let Registration { name, sql, wasm, description, params, replace } = registration;
        check_name(&name)?;
        if !rights.may_exchange(&name) {
            return Err(rights.denied("grant", format!("no grant to register the exchanger {name}")));
        }
        if description.as_ref().is_some_and(|text| text.len() > MAX_DESCRIPTION) {
            return Err(Error::invalid(format!("the description is longer than {MAX_DESCRIPTION} bytes")));
        }
        let definition = match (sql, wasm) {
            (Some(sql), None) => Definition::Sql { sql, params },
            (None, Some(module)) => Definition::Wasm { module, params },
            _ => return Err(Error::invalid("the body of add_exchange needs sql or wasm, and not both")),
        };
        self.may_add(rights, &name, replace)?;
        let exchanger = self.build(definition.clone(), description.clone()).await?;
        let _changing = self.0.changing.lock().await;
        let version = self.may_add(rights, &name, replace)?;
        let oldest = {
            let kept = self.0.config.exchange.versions - 1;
            let registered = self.read();
            let older = registered.get(&name).into_iter().flatten().rev().map(|(version, _)| *version);
            older.take(kept).last().unwrap_or(version)
        };
        if self.0.engine.is_on_disk() {
            let definition = serde_json::to_string(&definition).map_err(Error::internal)?;
            let description = description.unwrap_or_default();
            let (name, owner) = (name.clone(), rights.principal().to_string());
            let kept = KeptExchanger { name, version, owner, description, definition };
            self.0.engine.keep_exchanger(kept, oldest).await?;
        }
        let mut names = self.0.registered.write().unwrap_or_else(PoisonError::into_inner);
        let versions = names.entry(name).or_default();
        versions.insert(version, Registered::new(Some(rights.principal().to_string()), Ok(exchanger)));
        *versions = versions.split_off(&oldest);
        self.0.metrics.exchangers.set(names.len() as i64);
        Ok(version)
    }

    /// The version that a registration would have.
    fn may_add(&self, rights: &Rights, name: &str, replace: bool) -> Result<u64> {
        if self.0.built_in.contains_key(name) {
            return Err(Error::Exists(format!("exchanger \"{name}\" is built in; choose another name")));
        }
        let registered = self.read();
        let Some((newest, last)) = registered.get(name).and_then(BTreeMap::last_key_value) else {
            let limit = self.0.config.exchange.max_registered;
            if registered.len() >= limit {
                let what = format!("{limit} exchangers are registered already");
                return Err(Error::Limit { what, key: "exchange.max_registered" });
            }
            return Ok(1);
        };
        if !replace {
            return Err(Error::Exists(format!(
                "exchanger \"{name}\" already exists; \"replace\": true adds a version of it, and drop_exchange removes it"
            )));
        }
        last.may_change(rights, name)?;
        Ok(newest + 1)
    }

    /// Forgets NAME, or NAME@VERSION; running exchanges keep theirs.
    pub async fn remove(&self, rights: &Rights, name: &str) -> Result<()> {
        let (name, version) = read_versioned(name)?;
        let _changing = self.0.changing.lock().await;
        if self.0.built_in.contains_key(&name) {
            return Err(Error::invalid(format!("exchanger \"{name}\" is built in and cannot be dropped")));
        }
        self.find(rights, &name, version)?.may_change(rights, &name)?;
        if self.0.engine.is_on_disk() {
            self.0.engine.forget_exchanger(name.clone(), version).await?;
        }
        let mut names = self.0.registered.write().unwrap_or_else(PoisonError::into_inner);
        match (version, names.get_mut(&name)) {
            (Some(version), Some(versions)) if versions.len() > 1 => drop(versions.remove(&version)),
            _ => drop(names.remove(&name)),
        }
        self.0.metrics.exchangers.set(names.len() as i64);
        Ok(())
    }

    /// Those that the caller may use, each name's newest version first.
    pub fn list(&self, rights: &Rights) -> Vec<Listed> {
        let built_in = self.0.built_in.iter().map(|(name, registered)| (name.clone(), None, registered.clone()));
        let mut all: Vec<_> = built_in.collect();
        for (name, versions) in self.read().iter() {
            let newest_first = versions.iter().rev();
            all.extend(newest_first.map(|(version, registered)| (name.clone(), Some(*version), registered.clone())));
        }
        all.retain(|(name, _, _)| rights.may_exchange(name));
        all.into_iter().map(|(name, version, registered)| registered.listed(name, version)).collect()
    }

    /// Sends a stream through a chain, with the rights of whoever asks for it.
    pub async fn run(
        &self,
        rights: &Arc<Rights>,
        chain: &Chain,
        input: RecordBatchStream,
    ) -> Result<RecordBatchStream> {
        let limit = self.0.config.exchange.max_stages;
        if chain.0.len() > limit {
            let what = format!("the chain has {} exchangers, more than {limit}", chain.0.len());
            return Err(Error::Limit { what, key: "exchange.max_stages" });
        }
        // All are looked up before the first one starts.
        let mut stages = Vec::with_capacity(chain.0.len());
        for stage in &chain.0 {
            let name = &stage.name;
            if !rights.may_exchange(name) {
                return Err(rights.denied("grant", format!("no grant to use the exchanger {name}")));
            }
            let Registered { exchanger, statistics, .. } = self.find(rights, name, stage.version)?;
            let exchanger = exchanger.map_err(|Broken { why, .. }| {
                Error::Unsupported(format!("exchanger \"{name}\" is broken since the server started: {why}"))
            })?;
            let name = stage.version.map_or_else(|| name.clone(), |version| format!("{name}@{version}"));
            stages.push((watch::Stage { name, exchanger, statistics }, stage.arguments.clone()));
        }
        let mut output = input;
        for (stage, arguments) in stages {
            let run = Run { arguments, rights: rights.clone() };
            output = stage.start(output, run, &self.0.config.exchange, &self.0.metrics).await?;
        }
        Ok(output)
    }

    /// What is not there is answered with what is, as far as the caller may use it.
    fn find(&self, rights: &Rights, name: &str, version: Option<u64>) -> Result<Registered> {
        if let Some(built_in) = self.0.built_in.get(name) {
            return match version {
                None => Ok(built_in.clone()),
                Some(_) => Err(Error::NotFound(format!("exchanger \"{name}\" is built in and has no versions"))),
            };
        }
        let registered = self.read();
        let Some(versions) = registered.get(name) else {
            let known = self.0.built_in.keys().chain(registered.keys()).map(String::as_str);
            let known: Vec<&str> = known.filter(|name| rights.may_exchange(name)).collect();
            return Err(Error::NotFound(format!("exchanger \"{name}\" not found; there are {}", known.join(", "))));
        };
        let found = match version {
            Some(version) => versions.get(&version),
            None => versions.last_key_value().map(|(_, newest)| newest),
        };
        found.cloned().ok_or_else(|| {
            let known: Vec<String> = versions.keys().map(|version| format!("{name}@{version}")).collect();
            let version = version.unwrap_or_default();
            Error::NotFound(format!("exchanger \"{name}@{version}\" not found; there are {}", known.join(", ")))
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Versions>> {
        self.0.registered.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registered {
    fn new(owner: Option<String>, exchanger: Result<Arc<dyn Exchanger>, Broken>) -> Self {
        Self { owner, exchanger, statistics: Arc::default() }
    }

    /// Whoever registered it may, and admins.
    fn may_change(&self, rights: &Rights, name: &str) -> Result<()> {
        if rights.role >= Role::Admin || self.owner.as_ref() == Some(&rights.principal().to_string()) {
            return Ok(());
        }
        let owner = self.owner.as_deref().unwrap_or_default();
        Err(rights.denied("owner", format!("the exchanger {name} is {owner}'s; its owner and admins may change it")))
    }

    fn listed(self, name: String, version: Option<u64>) -> Listed {
        let Self { owner, exchanger, statistics } = self;
        let counts = statistics.read();
        match exchanger {
            Ok(exchanger) => {
                let kind = exchanger.kind().word();
                let About { description, input, output, streams, params } = exchanger.about().clone();
                Listed { name, version, kind, description, owner, input, output, streams, params, counts, broken: None }
            }
            Err(Broken { kind, description, why }) => Listed {
                name,
                version,
                kind,
                description,
                owner,
                input: String::new(),
                output: String::new(),
                streams: false,
                params: Map::new(),
                counts,
                broken: Some(why),
            },
        }
    }
}

impl Definition {
    fn kind(&self) -> Kind {
        match self {
            Self::Sql { .. } => Kind::Sql,
            Self::Wasm { .. } => Kind::Wasm,
        }
    }
}
