//! `mallard serve` as a process of its own, for what belongs to a process: its log, its traces, its environment.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use mallard::{
    client::{Client, Login},
    location::Location,
};
use serde_json::Value;

pub(crate) struct Process {
    child: Child,
    pub(crate) location: Location,
    pub(crate) admin: std::net::SocketAddr,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

/// The binary without what the tests' own environment may say.
pub(crate) fn mallard() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mallard"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MALLARD") || name.to_string_lossy().starts_with("OTEL_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// What it has written.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Process {
    /// Starts a server on free ports with JSON logs, and waits until it serves.
    pub(crate) fn serve(environment: &[(&str, &str)]) -> Self {
        let mut command = mallard();
        command
            .args(["serve", "--location", "grpc://127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .env("MALLARD__LOG__FORMAT", "json")
            .envs(environment.iter().copied());
        Self::spawn(command)
    }

    /// A server that writes JSON lines on standard error, once it serves.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the binary starts");
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (found, serving) = mpsc::channel();
        let kept = lines.clone();
        let reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if let Ok(line) = serde_json::from_str::<Value>(&line)
                    && line["message"] == "serving"
                {
                    let text = |key: &str| line[key].as_str().unwrap().to_string();
                    // Nobody may wait any more.
                    let _ = found.send((text("location"), text("admin")));
                }
                kept.lock().unwrap().push(line);
            }
        });
        let (location, admin) = serving
            .recv_timeout(Duration::from_secs(30))
            .unwrap_or_else(|_| panic!("it does not serve: {:?}", lines.lock().unwrap()));
        let (location, admin) = (location.parse().unwrap(), admin.parse().unwrap());
        Self { child, location, admin, lines, reader: Some(reader) }
    }

    pub(crate) async fn client(&self, login: Option<&Login>) -> Client {
        Client::connect(&self.location, login).await.expect("the client connects")
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the process lives");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// How many file descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    pub(crate) fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().count()
    }

    /// The value of a metric, named with its labels as in the exposition.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        crate::support::metric(&crate::admin::fetch(self.admin, "/metrics").await.1, name)
    }

    pub(crate) fn address(&self) -> (String, u16) {
        let Location::Tcp { host, port } = self.location.clone() else { panic!("it listens on TCP") };
        (host, port)
    }

    /// Waits until a line of its log holds this text.
    pub(crate) async fn logs(&self, text: &str) {
        let logged = async || self.lines.lock().unwrap().iter().any(|line| line.contains(text));
        crate::support::until(text, logged).await;
    }

    /// Ends it as a crash does: SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it ends by itself; its exit code and everything it wrote on standard error.
    pub(crate) async fn ended(mut self) -> (Option<i32>, Vec<String>) {
        let patience = std::time::Instant::now() + Duration::from_secs(60);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(std::time::Instant::now() < patience, "it does not end: {:?}", self.lines.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        self.reader.take().unwrap().join().unwrap();
        (status.code(), std::mem::take(&mut *self.lines.lock().unwrap()))
    }

    /// Stops it with SIGTERM; everything it wrote on standard error.
    pub(crate) fn stop(mut self) -> Vec<String> {
        self.signal("TERM");
        assert!(self.child.wait().unwrap().success(), "{:?}", self.lines.lock().unwrap());
        self.reader.take().unwrap().join().unwrap();
        std::mem::take(&mut *self.lines.lock().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
