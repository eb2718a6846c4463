//! Files are read again when they change, and what was there before stays in use where the new is broken.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use mallard::{
    error::Error,
    reload::{Files, Reloads},
    telemetry::Metrics,
};

use crate::{process::Process, support::until};

struct Counted {
    reloads: Reloads,
    metrics: Metrics,
    calls: Arc<AtomicUsize>,
}

/// Watches a file whose text is `good` or is refused.
fn watching(path: &Path) -> Counted {
    let metrics = Metrics::unregistered();
    let reloads = Reloads::start(metrics.clone()).unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let (read, counted) = (path.to_path_buf(), calls.clone());
    reloads.watch("users", Files::now([path.to_path_buf()]), move || {
        counted.fetch_add(1, Ordering::SeqCst);
        match std::fs::read_to_string(&read) {
            Ok(text) if text.starts_with("good") => Ok(()),
            other => Err(Error::invalid(format!("{other:?}"))),
        }
    });
    Counted { reloads, metrics, calls }
}

impl Counted {
    async fn comes(&self, outcome: &str, times: usize) {
        let line = format!("mallard_config_reloads_total{{outcome=\"{outcome}\",what=\"users\"}} {times}\n");
        until(&line, async || self.metrics.text().unwrap().contains(&line)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn change_of_a_file_is_noticed_and_a_broken_one_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("users.toml");
    std::fs::write(&path, "good").unwrap();
    let counted = watching(&path);
    // Same length, so that only the time or the inode tells.
    std::fs::write(&path, "evil").unwrap();
    counted.comes("refused", 1).await;
    std::fs::remove_file(&path).unwrap();
    counted.comes("refused", 2).await;
    std::fs::write(directory.path().join("new"), "good").unwrap();
    std::fs::rename(directory.path().join("new"), &path).unwrap();
    counted.comes("ok", 1).await;
    assert_eq!(counted.calls.load(Ordering::SeqCst), 3, "nothing is read without a change");
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_symlink_is_a_change() {
    // As kubelet does it: file -> ..data/file, ..data -> a directory with a time in its name.
    let directory = tempfile::tempdir().unwrap();
    let within = |name: &str| directory.path().join(name);
    for (version, text) in [("..1", "good 1"), ("..2", "good 2")] {
        std::fs::create_dir(within(version)).unwrap();
        std::fs::write(within(version).join("users.toml"), text).unwrap();
    }
    std::os::unix::fs::symlink("..1", within("..data")).unwrap();
    std::os::unix::fs::symlink("..data/users.toml", within("users.toml")).unwrap();
    let counted = watching(&within("users.toml"));
    std::os::unix::fs::symlink("..2", within("..data_tmp")).unwrap();
    std::fs::rename(within("..data_tmp"), within("..data")).unwrap();
    counted.comes("ok", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_read_again_when_asked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("users.toml");
    std::fs::write(&path, "good").unwrap();
    let counted = watching(&path);
    counted.reloads.reload();
    counted.comes("ok", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hangup_does_not_end_the_server() {
    let process = Process::serve(&[]);
    process.signal("HUP");
    process.logs("asked to reload").await;
    let client = process.client(None).await;
    assert!(client.healthy().await.unwrap());
    process.stop();
}
