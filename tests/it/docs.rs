//! The snippets of the documentation: what they show is what happens.

use std::process::Command;

use crate::support::TestServer;

/// Blocks of a Markdown text, with the word behind their fence.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(word), None) => open = Some((word.to_string(), String::new())),
            (None, Some((_, block))) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

#[tokio::test(flavor = "multi_thread")]
async fn shell_snippets_of_docs_exchangers_do_what_they_show() {
    let server = TestServer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/exchangers.md")).unwrap();
    let blocks = blocks(&text);
    let mut ran = 0;
    for (at, (word, script)) in blocks.iter().enumerate() {
        if word != "sh" {
            continue;
        }
        let script = script.replace("grpc://127.0.0.1:8815", &server.uri());
        let script = format!("set -e\nmallard() {{ '{}' \"$@\"; }}\n{script}", env!("CARGO_BIN_EXE_mallard"));
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(directory.path());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let (shown, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{script}: {said}");
        if let Some((_, expected)) = blocks.get(at + 1).filter(|(word, _)| word == "text") {
            assert_eq!(shown, expected.as_str(), "{script}: {said}");
        }
        ran += 1;
    }
    assert!(ran >= 5, "{ran}");
}
