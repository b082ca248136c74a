//! Service accounts, default roles, and who may do what.

use model::{Kind, object};
use proto::state::v1::operation::Operation as Op;
use proto::state::v1::{Apply, Put};
use proto::v1::{
    ClusterRole, ClusterRoleBinding, Namespace, Object, ObjectMeta, PolicyRule, ReplicaSet, Role,
    RoleBinding, RoleRef, ServiceAccount, Subject,
};
use state::rbac::{self, Access, Grant, Uncovered, Who};
use state::{State, plan};

use crate::support::*;

fn texts(words: &str) -> Vec<String> {
    words.split(',').map(|word| word.trim().to_owned()).collect()
}

/// `GROUPS RESOURCES VERBS`, each a list with commas; the group of v1 is `v1` here.
fn rule(text: &str) -> PolicyRule {
    let mut words = text.split(' ');
    let mut next = || texts(words.next().unwrap());
    let groups = next();
    PolicyRule {
        api_groups: groups
            .into_iter()
            .map(|group| if group == "v1" { String::new() } else { group })
            .collect(),
        resources: next(),
        verbs: next(),
        ..Default::default()
    }
}

fn named(name: &str, uid_of: &str) -> Option<ObjectMeta> {
    Some(ObjectMeta {
        name: name.to_owned(),
        uid: uid(uid_of),
        ..Default::default()
    })
}

fn cluster_role(name: &str, rules: &[&str]) -> Object {
    object::from(ClusterRole {
        metadata: named(name, &format!("cluster-role-{name}")),
        rules: rules.iter().map(|text| rule(text)).collect(),
        ..Default::default()
    })
}

fn role(name: &str, rules: &[&str]) -> Object {
    object::from(Role {
        metadata: Some(ObjectMeta {
            namespace: "default".to_owned(),
            ..named(name, &format!("role-{name}")).unwrap()
        }),
        rules: rules.iter().map(|text| rule(text)).collect(),
        ..Default::default()
    })
}

fn role_ref(kind: &str, name: &str) -> Option<RoleRef> {
    Some(RoleRef {
        kind: kind.to_owned(),
        name: name.to_owned(),
        ..Default::default()
    })
}

fn subject(kind: &str, name: &str) -> Subject {
    Subject {
        kind: kind.to_owned(),
        name: name.to_owned(),
        namespace: if kind == "ServiceAccount" { "default" } else { "" }.to_owned(),
        ..Default::default()
    }
}

fn bind_here(name: &str, role: (&str, &str), who: Subject) -> Object {
    object::from(RoleBinding {
        metadata: Some(ObjectMeta {
            namespace: "default".to_owned(),
            ..named(name, &format!("binding-{name}")).unwrap()
        }),
        role_ref: role_ref(role.0, role.1),
        subjects: vec![who],
        ..Default::default()
    })
}

fn bind_everywhere(name: &str, role: &str, who: Subject) -> Object {
    object::from(ClusterRoleBinding {
        metadata: named(name, &format!("cluster-binding-{name}")),
        role_ref: role_ref("ClusterRole", role),
        subjects: vec![who],
        ..Default::default()
    })
}

fn who(name: &str, groups: &[&str]) -> Who {
    let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
    Who::authenticated(name, &groups)
}

/// `VERB RESOURCE[/PART] NAMESPACE [NAME]`; `-` for no namespace.
fn access(text: &str) -> Access {
    let words: Vec<&str> = text.split(' ').collect();
    let (resource, part) = match words[1].split_once('/') {
        Some((resource, part)) => (resource, Some(part)),
        None => (words[1], None),
    };
    let namespace = words[2].trim_start_matches('-');
    let name = words.get(3).copied().unwrap_or_default();
    let access = Access::to(words[0], Kind::parse(resource).unwrap(), namespace, name);
    match part {
        Some(part) => access.part(part),
        None => access,
    }
}

fn may(state: &State, who: &Who, text: &str) -> bool {
    rbac::allows(state, who, &access(text)).is_some()
}

/// What the leader's loop does until it has nothing to do.
fn settle(state: &mut State) {
    for _ in 0..20 {
        let commands = plan::commands(state, 1_000, &plan::World::default());
        if commands.is_empty() {
            state::invariant::check(state).unwrap();
            return;
        }
        for command in commands {
            state.apply(&command);
        }
    }
    panic!("the plans do not come to rest");
}

#[test]
fn rules_mean_what_they_mean_in_kubernetes() {
    let mut state = cluster();
    let mut only_one = rule("v1 secrets get,delete");
    only_one.resource_names = vec!["db".to_owned()];
    let mut one_secret = role("one-secret", &[]);
    if let Some(proto::v1::object::Object::Role(role)) = &mut one_secret.object {
        role.rules.push(only_one);
    }
    run(
        &mut state,
        1,
        vec![
            put(cluster_role("reader", &["v1 pods,pods/log get,list"])),
            put(cluster_role("scaler", &["* */scale update"])),
            put(one_secret),
            put(role("all", &["* * *"])),
            put(bind_everywhere("reader", "reader", subject("Group", "readers"))),
            put(bind_everywhere("scaler", "scaler", subject("User", "ann"))),
            put(bind_here("one", ("Role", "one-secret"), subject("User", "ann"))),
            put(bind_here(
                "bob",
                ("ClusterRole", "reader"),
                subject("User", "bob"),
            )),
            put(bind_here(
                "sa",
                ("Role", "all"),
                subject("ServiceAccount", "robot"),
            )),
            put(bind_here("gone", ("Role", "missing"), subject("User", "eve"))),
        ],
    );
    let (ann, bob, eve) = (who("ann", &[]), who("bob", &[]), who("eve", &[]));
    let reader = who("rita", &["readers"]);
    let robot = who("system:serviceaccount:default:robot", &[]);
    for (who, text, expected) in [
        // Of the cluster: in each namespace and over all of them.
        (&reader, "get pods shop web", true),
        (&reader, "list pods -", true),
        (&reader, "get pods/log shop web", true),
        (&reader, "create pods/exec shop web", false),
        (&reader, "watch pods shop", false),
        (&reader, "get secrets shop db", false),
        (&reader, "get deployments shop web", false),
        // A ClusterRole that a RoleBinding names holds in its namespace.
        (&bob, "list pods default", true),
        (&bob, "list pods shop", false),
        (&bob, "list pods -", false),
        // A part of everything that has it, and not the whole.
        (&ann, "update deployments/scale default web", true),
        (&ann, "update deployments default web", false),
        // Names.
        (&ann, "get secrets default db", true),
        (&ann, "get secrets default other", false),
        (&ann, "list secrets default", false),
        (&ann, "get secrets shop db", false),
        // A service account, and others of the like name.
        (&robot, "delete deployments default web", true),
        (&robot, "delete deployments shop web", false),
        (&who("robot", &[]), "delete deployments default web", false),
        (
            &who("system:serviceaccount:shop:robot", &[]),
            "get pods default",
            false,
        ),
        // A binding to a role that is not there gives nothing.
        (&eve, "get pods default web", false),
        (&who("x", &["bulkhead:admins"]), "delete nodes - n1", true),
    ] {
        assert_eq!(may(&state, who, text), expected, "{} {text}", who.name);
    }
    let grant = rbac::allows(&state, &bob, &access("list pods default")).unwrap();
    let expected = Grant::Bound {
        binding: "RoleBinding default/bob".to_owned(),
        role: "ClusterRole reader".to_owned(),
    };
    assert_eq!(grant, expected);
}

#[test]
fn nobody_gives_what_they_do_not_hold() {
    let mut state = cluster();
    run(
        &mut state,
        1,
        vec![
            put(cluster_role(
                "dev",
                &["v1 pods,pods/log get,list", "apps * *", "* */status get"],
            )),
            put(bind_here("dev", ("ClusterRole", "dev"), subject("User", "dev"))),
        ],
    );
    let dev = who("dev", &[]);
    let holds = |namespace: &str, rules: &[&str]| {
        let rules: Vec<PolicyRule> = rules.iter().map(|text| rule(text)).collect();
        rbac::holds(&state, &dev, namespace, &rules)
    };
    assert_eq!(holds("default", &["v1 pods get", "apps deployments *"]), Ok(()));
    // Together from several rules.
    assert_eq!(holds("default", &["v1,apps pods get"]), Ok(()));
    assert_eq!(holds("default", &["v1 nodes/status get"]), Ok(()));
    for (namespace, wanted, missing) in [
        ("default", "v1 pods *", "* pods"),
        ("default", "v1 secrets get", "get secrets"),
        ("default", "* deployments get", "get deployments.*"),
        ("default", "v1 pods/exec get", "get pods/exec"),
        ("shop", "v1 pods get", "get pods"),
        ("", "v1 pods get", "get pods"),
    ] {
        let expected = Err(Uncovered::Right(missing.to_owned()));
        assert_eq!(holds(namespace, &[wanted]), expected, "{wanted} in `{namespace}`");
    }
    let admin = who("root", &["bulkhead:admins"]);
    assert_eq!(rbac::holds(&state, &admin, "", &[rule("* * *")]), Ok(()));

    // A name is less than all names.
    let mut one = rule("v1 pods get");
    one.resource_names = vec!["web".to_owned()];
    assert_eq!(rbac::holds(&state, &dev, "default", &[one]), Ok(()));
}

#[test]
fn a_role_with_too_many_single_rights_is_not_looked_at() {
    let state = cluster();
    let many = |count: usize| (0..count).map(|number| number.to_string()).collect::<Vec<_>>();
    let huge = PolicyRule {
        verbs: many(101),
        api_groups: many(10),
        resources: many(10),
        ..Default::default()
    };
    assert_eq!(
        rbac::holds(&state, &who("x", &[]), "", &[huge]),
        Err(Uncovered::TooMany)
    );
}

#[test]
fn each_namespace_has_a_service_account_and_the_cluster_its_roles() {
    let mut state = cluster();
    run(&mut state, 1, vec![put(namespace("shop"))]);
    settle(&mut state);
    let account = |state: &State, namespace: &str| {
        state.get(&object::key_of(Kind::ServiceAccount, namespace, "default"))
    };
    let first = account(&state, "shop").unwrap();
    assert!(account(&state, "default").is_some());
    for name in ["cluster-admin", "admin", "edit", "view"] {
        assert!(
            state.get(&object::key_of(Kind::ClusterRole, "", name)).is_some(),
            "{name}"
        );
    }
    let binding = object::key_of(Kind::ClusterRoleBinding, "", "cluster-admin");
    assert!(state.get(&binding).is_some());

    // It comes again, as another one.
    let key = object::key(&first);
    let gone = proto::state::v1::operation::Operation::Delete(proto::state::v1::DeleteOp {
        key: Some(key),
        ..Default::default()
    });
    run(&mut state, 2, vec![gone]);
    settle(&mut state);
    let second = account(&state, "shop").unwrap();
    assert_ne!(object::meta(&first).uid, object::meta(&second).uid);

    // Not in a namespace that goes: it would never be empty.
    run(&mut state, 3, vec![delete("Namespace", "shop")]);
    settle(&mut state);
    assert!(state.get(&key_of_namespace("shop")).is_none());
}

fn key_of_namespace(name: &str) -> proto::state::v1::Key {
    object::key_of(Kind::Namespace, "", name)
}

#[test]
fn a_default_role_gets_back_what_it_lacks_unless_it_is_to_be_left_alone() {
    let mut state = cluster();
    settle(&mut state);
    let key = object::key_of(Kind::ClusterRole, "", "view");
    let read = |state: &State| object::into::<ClusterRole>(state.get(&key).unwrap()).unwrap();
    let whole = read(&state);
    let mut less = whole.clone();
    less.rules.truncate(1);
    less.rules.push(rule("v1 nodes get"));
    run(&mut state, 1, vec![put(object::from(less.clone()))]);
    settle(&mut state);
    let completed = read(&state);
    assert!(whole.rules.iter().all(|rule| completed.rules.contains(rule)));
    assert!(completed.rules.contains(&rule("v1 nodes get")));

    let annotations = &mut less.metadata.as_mut().unwrap().annotations;
    annotations.insert(rbac::defaults::AUTOUPDATE.to_owned(), "false".to_owned());
    run(&mut state, 2, vec![put(object::from(less))]);
    settle(&mut state);
    assert_eq!(read(&state).rules.len(), 2);
}

#[test]
fn a_reader_reads_no_secrets_and_an_editor_gives_no_rights() {
    let mut state = cluster();
    settle(&mut state);
    run(
        &mut state,
        1,
        vec![
            put(bind_here("v", ("ClusterRole", "view"), subject("User", "v"))),
            put(bind_here("e", ("ClusterRole", "edit"), subject("User", "e"))),
            put(bind_here("a", ("ClusterRole", "admin"), subject("User", "a"))),
        ],
    );
    let (view, edit, admin) = (who("v", &[]), who("e", &[]), who("a", &[]));
    assert!(may(&state, &view, "get pods/log default web"));
    assert!(!may(&state, &view, "get secrets default db"));
    assert!(!may(&state, &view, "create pods/exec default web"));
    assert!(may(&state, &edit, "create pods/exec default web"));
    assert!(may(&state, &edit, "update secrets default db"));
    assert!(!may(&state, &edit, "create rolebindings default"));
    assert!(may(&state, &admin, "create rolebindings default"));
    assert!(!may(&state, &admin, "create clusterrolebindings -"));
    assert!(!may(&state, &admin, "list nodes -"));
    // An admin of a namespace can give the role on, and none of the cluster's.
    let rules = |name: &str| {
        let role = role_ref("ClusterRole", name).unwrap();
        rbac::rules_of(&state, "default", &role).unwrap().to_vec()
    };
    assert_eq!(rbac::holds(&state, &admin, "default", &rules("admin")), Ok(()));
    assert!(rbac::holds(&state, &admin, "default", &rules("cluster-admin")).is_err());
    assert!(rbac::holds(&state, &edit, "default", &rules("admin")).is_err());
}

#[test]
fn a_pod_needs_the_service_account_that_it_names() {
    let mut state = cluster();
    let named = |account: &str| {
        let mut pod = pod("web");
        pod.spec.as_mut().unwrap().service_account_name = account.to_owned();
        put(object::from(pod))
    };
    let account = put(object::from(ServiceAccount {
        metadata: Some(meta("robot")),
        ..Default::default()
    }));
    let Op::Put(Put { object }) = named("robot") else {
        unreachable!("it is put");
    };
    let apply = Op::Apply(Apply {
        said: object.clone(),
        object,
        manager: "ctl".to_owned(),
    });
    for operation in [named("robot"), apply] {
        let outcome = state.apply(&transaction(1, vec![operation]));
        let (reason, message) = refused(&outcome);
        assert_eq!(reason, "Forbidden");
        assert!(
            message.contains("service account robot does not exist"),
            "{message}"
        );
    }
    // In one transaction in any order; and the one that every namespace has always.
    run(&mut state, 2, vec![named("robot"), account]);
    assert_eq!(get_pod(&state, "web").spec.unwrap().service_account_name, "robot");
    run(&mut state, 3, vec![delete("ServiceAccount", "robot")]);
    // What is there already stays as it is.
    run(&mut state, 4, vec![named("robot")]);
    run(&mut state, 5, vec![put(object::from(pod("other")))]);
    assert_eq!(
        get_pod(&state, "other").spec.unwrap().service_account_name,
        "default"
    );
}

#[test]
fn the_default_account_is_no_change_of_a_pod() {
    let mut state = cluster();
    run(&mut state, 1, vec![put(object::from(pod("web")))]);
    let there = get_pod(&state, "web");
    let before = state.revision();
    run(&mut state, 2, vec![put(object::from(there))]);
    assert_eq!(state.revision(), before);
}

#[test]
fn a_deployment_waits_for_its_service_account_and_says_so() {
    let mut state = cluster();
    let mut web = deployment("web", 2, "web:1");
    let template = web.spec.as_mut().unwrap().template.as_mut().unwrap();
    template.spec.as_mut().unwrap().service_account_name = "robot".to_owned();
    run(&mut state, 1, vec![put(object::from(web))]);
    settle(&mut state);
    let set = |state: &State| -> ReplicaSet {
        let set = state.list(Kind::ReplicaSet, None, None).next().unwrap();
        object::into(set).unwrap()
    };
    assert_eq!(state.count(Kind::Pod), 0);
    let conditions = set(&state).status.unwrap().conditions;
    assert_eq!(conditions[0].r#type, "ReplicaFailure");
    assert!(
        conditions[0].message.contains("robot"),
        "{}",
        conditions[0].message
    );

    let account = ServiceAccount {
        metadata: Some(meta("robot")),
        ..Default::default()
    };
    run(&mut state, 2, vec![put(object::from(account))]);
    settle(&mut state);
    assert_eq!(state.count(Kind::Pod), 2);
    assert_eq!(set(&state).status.unwrap().conditions, []);
}

#[test]
fn a_namespace_takes_its_service_accounts_and_roles_along() {
    let mut state = cluster();
    let there = object::from(Namespace {
        metadata: named("shop", "shop"),
        ..Default::default()
    });
    run(&mut state, 1, vec![put(there)]);
    let mut shop_role = role("r", &["v1 pods get"]);
    object::meta_mut(&mut shop_role).namespace = "shop".to_owned();
    run(&mut state, 2, vec![put(shop_role)]);
    settle(&mut state);
    run(&mut state, 3, vec![delete("Namespace", "shop")]);
    settle(&mut state);
    assert_eq!(state.list(Kind::Role, Some("shop"), None).count(), 0);
    assert!(state.get(&key_of_namespace("shop")).is_none());
}
