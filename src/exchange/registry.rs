//! Who has registered which exchanger in which versions; kept beside the server's database where that is a file.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak},
};

#[cfg(feature = "wasm")]
use super::wasm::Modules;
use super::{
    Chain, Definition, Exchanger, Parameters, Registration, Run, builtin,
    chain::{check_name, read_versioned},
    sql::Sandboxes,
    version::{Broken, Listed, Version},
    watch,
};
use crate::{
    access::Rights,
    config::Config,
    engine::{Engine, KeptExchanger},
    error::{Error, Result},
    stream::RecordBatchStream,
    telemetry::Metrics,
};
use futures::{StreamExt, stream};

/// Bytes; a description is one line for people.
const MAX_DESCRIPTION: usize = 4096;

/// Kept definitions that are checked at once when a server starts.
const CHECKED_AT_ONCE: usize = 2;

/// The exchangers of one server, by name. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    built_in: BTreeMap<String, Arc<Version>>,
    registered: RwLock<BTreeMap<String, Versions>>,
    /// Versions that were replaced or dropped, by name and number, as long as a stream uses them.
    retired: Mutex<Vec<(String, u64, Weak<Version>)>>,
    /// Held while one is registered or removed, so that memory and file say the same.
    changing: tokio::sync::Mutex<()>,
    engine: Arc<Engine>,
    sandboxes: Sandboxes,
    #[cfg(feature = "wasm")]
    modules: Modules,
    config: Config,
    metrics: Metrics,
}

/// By number; never empty.
type Versions = BTreeMap<u64, Arc<Version>>;

impl Registry {
    /// With what is kept beside the engine's database. One that is broken is listed as such.
    pub async fn load(config: &Config, engine: Arc<Engine>, metrics: Metrics) -> Result<Self> {
        let sandboxes = Sandboxes::new(config, engine.clone());
        let built_in = builtin::all(&sandboxes)
            .into_iter()
            .map(|(name, exchanger)| (name, Version::new(None, None, Parameters::default(), Ok(exchanger))));
        let registry = Self(Arc::new(Inner {
            built_in: built_in.collect(),
            registered: RwLock::default(),
            retired: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            sandboxes,
            #[cfg(feature = "wasm")]
            modules: Modules::new(&config.wasm),
            engine,
            config: config.clone(),
            metrics,
        }));
        if registry.0.engine.is_on_disk() {
            let kept = registry.0.engine.kept_exchangers().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the exchangers that were registered cannot be read; the server starts without them");
                Vec::new()
            });
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

    async fn revive(&self, kept: KeptExchanger) -> (String, u64, Arc<Version>) {
        let KeptExchanger { name, version, owner, description, definition } = kept;
        let definition: Result<Definition> = serde_json::from_str(&definition)
            .map_err(|error| Error::invalid(format!("its definition cannot be read: {error}")));
        let described = Some(description).filter(|text| !text.is_empty());
        let kind = definition.as_ref().map_or("unknown", |definition| definition.kind().word());
        let params =
            definition.as_ref().map_or_else(|_| Parameters::default(), |definition| definition.params().clone());
        let exchanger = match definition {
            Ok(definition) => self.build(definition, false).await.map(|(exchanger, _)| exchanger),
            Err(error) => Err(error),
        };
        let exchanger = exchanger.map_err(|error| {
            let why = error.to_string();
            tracing::warn!(exchanger = name, version, why, "a kept exchanger does not work any more");
            Broken { kind, why }
        });
        (name, version, Version::new(Some(owner), described, params, exchanger))
    }

    /// The one place that knows how each kind is made. Parameters that were `inherited` and that it has not are left out of
    /// its definition.
    async fn build(&self, definition: Definition, inherited: bool) -> Result<(Arc<dyn Exchanger>, Definition)> {
        match definition {
            Definition::Sql { sql, params } => {
                let (exchanger, params) = self.0.sandboxes.exchanger(&sql, params, inherited).await?;
                Ok((exchanger, Definition::Sql { sql, params }))
            }
            #[cfg(feature = "wasm")]
            Definition::Wasm { module, params } => {
                let exchanger = self.0.modules.exchanger(&self.0.sandboxes, module.clone(), params.clone()).await?;
                Ok((exchanger, Definition::Wasm { module, params }))
            }
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
        if sql.is_some() == wasm.is_some() {
            return Err(Error::invalid("the body of add_exchange needs sql or wasm, and not both"));
        }
        self.may_add(rights, &name, replace)?;
        let (exchanger, definition, version, last, _changing) = loop {
            // A new version declares what the one before did, unless it says otherwise.
            let last = self.newest(&name);
            let declared = match (&params, &last) {
                (Some(params), _) => params.clone(),
                (None, Some((_, last))) => last.params.clone(),
                (None, None) => Parameters::default(),
            };
            let definition = match (&sql, &wasm) {
                (Some(sql), _) => Definition::Sql { sql: sql.clone(), params: declared },
                (None, module) => Definition::Wasm { module: module.clone().unwrap_or_default(), params: declared },
            };
            let (exchanger, definition) = self.build(definition, params.is_none()).await?;
            let changing = self.0.changing.lock().await;
            let version = self.may_add(rights, &name, replace)?;
            // Another may have been quicker.
            let number = |last: &Option<(u64, Arc<Version>)>| last.as_ref().map(|(number, _)| *number);
            if params.is_some() || number(&self.newest(&name)) == number(&last) {
                break (exchanger, definition, version, self.newest(&name), changing);
            }
        };
        // A new version is described as the one before, unless it says otherwise.
        let description = match description {
            Some(new) => Some(new).filter(|text| !text.is_empty()),
            None => last.and_then(|(_, last)| last.description.clone()),
        };
        let oldest = {
            let kept = self.0.config.exchange.versions - 1;
            let registered = self.read();
            let older = registered.get(&name).into_iter().flatten().rev().map(|(version, _)| *version);
            older.take(kept).last().unwrap_or(version)
        };
        if self.0.engine.is_on_disk() {
            let definition = serde_json::to_string(&definition).map_err(Error::internal)?;
            let description = description.clone().unwrap_or_default();
            let (name, owner) = (name.clone(), rights.principal().to_string());
            let kept = KeptExchanger { name, version, owner, description, definition };
            self.0.engine.keep_exchanger(kept, oldest).await?;
        }
        let mut names = self.0.registered.write().unwrap_or_else(PoisonError::into_inner);
        let versions = names.entry(name.clone()).or_default();
        let (owner, params) = (Some(rights.principal().to_string()), definition.params().clone());
        versions.insert(version, Version::new(owner, description, params, Ok(exchanger)));
        let current = versions.split_off(&oldest);
        self.retire(&name, std::mem::replace(versions, current));
        self.0.metrics.exchangers.set(names.len() as i64);
        Ok(version)
    }

    fn newest(&self, name: &str) -> Option<(u64, Arc<Version>)> {
        let registered = self.read();
        let (number, newest) = registered.get(name)?.last_key_value()?;
        Some((*number, newest.clone()))
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
        let gone = match (version, names.get_mut(&name)) {
            (Some(version), Some(versions)) if versions.len() > 1 => {
                versions.remove_entry(&version).into_iter().collect()
            }
            _ => names.remove(&name).unwrap_or_default(),
        };
        self.retire(&name, gone);
        self.0.metrics.exchangers.set(names.len() as i64);
        Ok(())
    }

    /// Those that the caller may use, each name's newest version first.
    pub fn list(&self, rights: &Rights) -> Vec<Listed> {
        let built_in = self.0.built_in.iter().map(|(name, version)| (name.clone(), None, version.clone(), false));
        let mut all: Vec<_> = built_in.collect();
        let mut retired = self.retired();
        for (name, versions) in self.read().iter() {
            let newest_first = versions.iter().rev();
            all.extend(newest_first.map(|(number, version)| (name.clone(), Some(*number), version.clone(), false)));
            let (own, others) = retired.into_iter().partition(|(retired, _, _)| retired == name);
            retired = others;
            all.extend(own.into_iter().rev().map(|(name, number, version)| (name, Some(number), version, true)));
        }
        all.extend(retired.into_iter().rev().map(|(name, number, version)| (name, Some(number), version, true)));
        all.retain(|(name, ..)| rights.may_exchange(name));
        all.into_iter().map(|(name, number, version, retired)| version.listed(rights, name, number, retired)).collect()
    }

    /// Remembers versions that nobody can start any more, for as long as streams use them.
    fn retire(&self, name: &str, gone: Versions) {
        let mut retired = self.0.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|(_, _, version)| version.strong_count() > 0);
        retired.extend(gone.iter().map(|(number, version)| (name.to_string(), *number, Arc::downgrade(version))));
    }

    fn retired(&self) -> Vec<(String, u64, Arc<Version>)> {
        let retired = self.0.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.iter().filter_map(|(name, number, version)| Some((name.clone(), *number, version.upgrade()?))).collect()
    }

    /// Sends a stream through a chain, with the rights of whoever asks for it. `lossless` is for what the last exchanger
    /// gives; those before it lose nothing.
    pub async fn run(
        &self,
        rights: &Arc<Rights>,
        chain: &Chain,
        input: RecordBatchStream,
        lossless: bool,
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
            let version = self.find(rights, name, stage.version)?;
            let exchanger = version.exchanger().map_err(|why| {
                Error::Unsupported(format!("exchanger \"{name}\" is broken since the server started: {why}"))
            })?;
            let name = stage.version.map_or_else(|| name.clone(), |version| format!("{name}@{version}"));
            stages.push((watch::Stage { name, exchanger, version }, stage.arguments.clone()));
        }
        let starting = async {
            let mut output = input;
            let last = stages.len() - 1;
            for (place, (stage, arguments)) in stages.into_iter().enumerate() {
                let run = Run { arguments, rights: rights.clone(), lossless: lossless || place < last };
                output = stage.start(output, run, &self.0.config.exchange, &self.0.metrics).await?;
            }
            Ok(output)
        };
        self.0.engine.see_exchange(rights, &chain.shown(), starting).await
    }

    /// What is not there is answered with what is, as far as the caller may use it.
    fn find(&self, rights: &Rights, name: &str, version: Option<u64>) -> Result<Arc<Version>> {
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
