//! Who changed what: what is noted, what is not, and how much of it is kept.

use proto::state::v1::command_reply::Reply;
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{Apply, Command, Past, Scale};
use proto::v1::object::Object as Any;
use state::{Outcome, State};

use crate::support::*;

fn by(actor: &str, verb: &str, now: i64, operation: Op) -> Command {
    let mut command = transaction(now, vec![operation]);
    command.actor = actor.to_owned();
    command.verb = verb.to_owned();
    command
}

fn told(past: &[Past]) -> Vec<(u64, &str, &str, bool)> {
    past.iter()
        .map(|past| {
            (
                past.revision,
                past.actor.as_str(),
                past.verb.as_str(),
                past.object.is_some(),
            )
        })
        .collect()
}

fn replicas(past: &Past) -> Option<i32> {
    match &past.object.as_ref()?.object {
        Some(Any::Deployment(deployment)) => deployment.spec.as_ref()?.replicas,
        _ => None,
    }
}

fn objects(outcome: &Outcome) -> usize {
    match &outcome.reply.reply {
        Some(Reply::Applied(applied)) => applied.objects.len(),
        other => panic!("{other:?}"),
    }
}

fn scale(replicas: i32) -> Op {
    Op::Scale(Scale {
        key: Some(key("Deployment", "web")),
        uid: String::new(),
        replicas,
    })
}

#[test]
fn each_change_of_a_person_is_noted_and_none_of_the_cluster() {
    let mut state = cluster();
    let web = model::object::from(deployment("web", 2, "web:1"));
    applied(&state.apply(&by("ada", "apply", 1_000, put(web.clone()))));
    let created = state.revision();
    applied(&state.apply(&by("bob", "scale", 2_000, scale(5))));
    let scaled = state.revision();
    // The cluster's own hand, and a put that changes nothing.
    applied(&state.apply(&transaction(3_000, vec![scale(4)])));
    applied(&state.apply(&by("bob", "scale", 4_000, scale(4))));
    applied(&state.apply(&by("ada", "delete", 5_000, delete("Deployment", "web"))));
    let deleted = state.revision();
    let history = state.history(&key("Deployment", "web"));
    assert_eq!(
        told(&history),
        [
            (created, "ada", "apply", true),
            (scaled, "bob", "scale", true),
            (deleted, "ada", "delete", false)
        ]
    );
    assert_eq!([replicas(&history[0]), replicas(&history[1])], [Some(2), Some(5)]);
    assert_eq!(history[1].time, Some(time(2_000)));
    let form = history[1].object.as_ref().unwrap();
    let meta = model::object::meta(form);
    assert_eq!((meta.uid.as_str(), meta.resource_version.as_str()), ("", ""));
    let copy = State::decode(state.encode()).unwrap();
    assert_eq!(
        copy.history(&key("Deployment", "web")),
        history,
        "a snapshot carries it"
    );
    assert_eq!(copy.past(scaled).as_ref(), history.get(1));
}

#[test]
fn what_was_there_before_the_first_noted_change_is_known() {
    let mut state = cluster();
    applied(&state.apply(&transaction(1_000, vec![put(config("a", "old"))])));
    let before = state.revision();
    applied(&state.apply(&by("ada", "apply", 2_000, put(config("a", "new")))));
    let history = state.history(&key("ConfigMap", "a"));
    let after = state.revision();
    assert_eq!(
        told(&history),
        [(before, "", "", true), (after, "ada", "apply", true)]
    );
}

#[test]
fn pods_have_no_history() {
    let mut state = cluster();
    applied(&state.apply(&by("ada", "run", 1_000, put(model::object::from(pod("p"))))));
    assert_eq!(state.history(&key("Pod", "p")), []);
}

#[test]
fn of_one_object_the_oldest_forms_go() {
    let mut state = cluster();
    for number in 0..state::FORMS_MAX + 5 {
        applied(&state.apply(&by("ada", "apply", 1_000, put(config("a", &number.to_string())))));
    }
    let history = state.history(&key("ConfigMap", "a"));
    assert_eq!(history.len(), state::FORMS_MAX);
    assert_eq!(history.last().map(|past| past.revision), Some(state.revision()));
    state::invariant::check(&state).unwrap();
}

#[test]
fn large_forms_push_out_their_own_and_then_the_oldest_of_all() {
    let mut state = cluster();
    applied(&state.apply(&by("ada", "apply", 1_000, put(config("small", "1")))));
    let large = |number: usize| format!("{number}{}", "x".repeat(900_000));
    for number in 0..4 {
        applied(&state.apply(&by("ada", "apply", 1_000, put(config("large", &large(number))))));
    }
    assert_eq!(state.history(&key("ConfigMap", "large")).len(), 2);
    assert_eq!(state.history(&key("ConfigMap", "small")).len(), 1);
    for number in 0..40 {
        let name = format!("large-{number}");
        applied(&state.apply(&by("ada", "apply", 1_000, put(config(&name, &large(number))))));
    }
    assert_eq!(state.history(&key("ConfigMap", "small")), [], "it was the oldest");
    state::invariant::check(&state).unwrap();
}

#[test]
fn a_managers_word_is_kept_until_the_object_goes_and_shows_nowhere() {
    let mut state = cluster();
    let apply = |manager: &str, object, said| {
        let apply = Apply {
            object: Some(object),
            manager: manager.to_owned(),
            said: Some(said),
        };
        transaction(1_000, vec![Op::Apply(apply)])
    };
    let shown = objects(&state.apply(&apply("ctl", config("a", "1"), config("a", "said"))));
    assert_eq!(shown, 1);
    let revision = state.revision();
    let shown = objects(&state.apply(&apply("ci", config("a", "1"), config("a", "too"))));
    assert_eq!(
        (shown, state.revision()),
        (0, revision),
        "the object is as it was"
    );
    let copy = State::decode(state.encode()).unwrap();
    for state in [&state, &copy] {
        let said = state.said(&key("ConfigMap", "a"));
        let managers: Vec<&str> = said.iter().map(|(manager, _)| manager.as_str()).collect();
        assert_eq!(managers, ["ctl", "ci"]);
        assert_eq!(said[1].1, config("a", "too"));
    }
    for number in 2..state::MANAGERS_MAX {
        let name = format!("m{number}");
        applied(&state.apply(&apply(&name, config("a", "1"), config("a", "1"))));
    }
    let refused = state.apply(&apply("one-more", config("a", "1"), config("a", "1")));
    assert!(!refused.applied());
    applied(&state.apply(&transaction(1_000, vec![delete("ConfigMap", "a")])));
    assert_eq!(state.said(&key("ConfigMap", "a")), []);
}
