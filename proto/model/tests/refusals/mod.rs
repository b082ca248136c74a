//! What is refused of a manifest.

#![allow(unreachable_pub, reason = "a module of programs of tests")]

use model::read::manifests;

/// Each refusal, as `PATH: MESSAGE`.
#[track_caller]
fn refused(text: &str) -> Vec<String> {
    match manifests("f.yaml", text.as_bytes()) {
        Ok(_) => panic!("nothing refused\n{text}"),
        Err(refusals) => refusals
            .refusals
            .iter()
            .map(|refusal| format!("{}: {}", refusal.path, refusal.message))
            .collect(),
    }
}

/// One refusal and no other.
#[track_caller]
pub fn check(text: &str, path: &str, message: &str) {
    let refused = refused(text);
    assert_eq!(refused.len(), 1, "{refused:#?}\n{text}");
    assert!(
        refused[0].starts_with(&format!("{path}: {message}")),
        "{}\n{path}: {message}",
        refused[0]
    );
}

/// A pod whose container and specification have these fields too.
pub fn pod(container: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, spec: {{containers: [{{name: c, image: i{container}}}]{spec}}}}}\n"
    )
}
