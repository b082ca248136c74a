//! Deployments and their revisions.

use proto::v1::int_or_string::Value;
use proto::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, IntOrString, LabelSelector, PodTemplateSpec, ReplicaSet,
};

use super::{Errors, labels, pod};
use crate::selector::Labels;
use crate::{at_most_once, name};

pub(super) fn deployment(errors: &mut Errors, deployment: &Deployment) {
    let Some(spec) = &deployment.spec else {
        return errors.add("spec", "is required");
    };
    replicas(errors, spec.replicas);
    errors.range(
        "spec.minReadySeconds".to_owned(),
        spec.min_ready_seconds,
        0,
        i32::MAX,
    );
    if let Some(limit) = spec.revision_history_limit {
        errors.range("spec.revisionHistoryLimit".to_owned(), limit, 0, i32::MAX);
    }
    if let Some(seconds) = spec.progress_deadline_seconds
        && seconds <= spec.min_ready_seconds
    {
        let message = format!(
            "must be more than minReadySeconds ({}), is {seconds}",
            spec.min_ready_seconds
        );
        errors.add("spec.progressDeadlineSeconds", message);
    }
    if let Some(written) = &spec.strategy {
        strategy(errors, written);
    }
    selector(errors, spec.selector.as_ref(), spec.template.as_ref());
    template(errors, spec.template.as_ref());
    runs_at_most_once(errors, spec);
}

/// Where no pod may run beside the one that it replaces, a rollout can't begin with one more.
fn runs_at_most_once(errors: &mut Errors, spec: &DeploymentSpec) {
    let meta = spec
        .template
        .as_ref()
        .and_then(|template| template.metadata.as_ref());
    if !meta.is_some_and(|meta| at_most_once::is_asked(&meta.annotations)) {
        return;
    }
    let surge = |strategy: &DeploymentStrategy| match strategy.r#type.as_str() {
        "Recreate" => false,
        _ => {
            let rolling = strategy.rolling_update.as_ref();
            let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref()?.value.clone());
            match surge {
                Some(Value::Number(count)) => count != 0,
                Some(Value::Text(text)) => text.trim_end_matches('%').parse::<i32>() != Ok(0),
                None => true,
            }
        }
    };
    if spec.strategy.as_ref().is_none_or(surge) {
        errors.add(
            "spec.strategy",
            format!(
                "would start new pods beside the old ones, and these ask for {}: write `type: Recreate`, or \
                 `rollingUpdate: {{maxSurge: 0}}`",
                at_most_once::ANNOTATION
            ),
        );
    }
}

pub(super) fn replica_set(errors: &mut Errors, set: &ReplicaSet) {
    let Some(spec) = &set.spec else {
        return errors.add("spec", "is required");
    };
    replicas(errors, spec.replicas);
    errors.range(
        "spec.minReadySeconds".to_owned(),
        spec.min_ready_seconds,
        0,
        i32::MAX,
    );
    selector(errors, spec.selector.as_ref(), spec.template.as_ref());
    template(errors, spec.template.as_ref());
}

fn replicas(errors: &mut Errors, replicas: Option<i32>) {
    if let Some(count) = replicas {
        errors.range("spec.replicas".to_owned(), count, 0, i32::MAX);
    }
}

fn template(errors: &mut Errors, template: Option<&PodTemplateSpec>) {
    let Some(template) = template else {
        return errors.add("spec.template", "is required");
    };
    pod::template(errors, "spec.template", template);
    if let Some(spec) = &template.spec
        && matches!(spec.restart_policy.as_str(), "OnFailure" | "Never")
    {
        let message = format!(
            "must be Always here: a deployment replaces what ended, is {}",
            spec.restart_policy
        );
        errors.add("spec.template.spec.restartPolicy", message);
    }
}

fn selector(errors: &mut Errors, selector: Option<&LabelSelector>, template: Option<&PodTemplateSpec>) {
    let path = "spec.selector";
    let Some(selector) = selector else {
        return errors.add(path, "is required");
    };
    let before = errors.list.len();
    if selector.match_labels.is_empty() && selector.match_expressions.is_empty() {
        errors.add(path, "must not be empty: it would select every pod");
    }
    labels(errors, &format!("{path}.matchLabels"), &selector.match_labels);
    for (index, expression) in selector.match_expressions.iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        if errors.required(format!("{path}.key"), &expression.key) {
            errors.check(format!("{path}.key"), name::label_key(&expression.key));
        }
        let operators = ["In", "NotIn", "Exists", "DoesNotExist"];
        errors.one_of(format!("{path}.operator"), &expression.operator, &operators);
        match (expression.operator.as_str(), expression.values.is_empty()) {
            ("In" | "NotIn", true) => errors.add(format!("{path}.values"), "is required with In and NotIn"),
            ("Exists" | "DoesNotExist", false) => {
                errors.add(
                    format!("{path}.values"),
                    "must be empty with Exists and DoesNotExist",
                );
            }
            _ => {}
        }
        for (index, value) in expression.values.iter().enumerate() {
            errors.check(format!("{path}.values[{index}]"), name::label_value(value));
        }
    }
    if errors.list.len() > before {
        return; // what is broken matches nothing, which would only be said twice
    }
    let (Ok(labels), Some(template)) = (Labels::from_selector(selector), template) else {
        return;
    };
    let own = template
        .metadata
        .as_ref()
        .map(|meta| meta.labels.clone())
        .unwrap_or_default();
    if !labels.matches(&own) {
        errors.add(
            "spec.template.metadata.labels",
            format!("do not match the selector `{labels}`"),
        );
    }
}

fn strategy(errors: &mut Errors, strategy: &DeploymentStrategy) {
    let path = "spec.strategy";
    errors.one_of(
        format!("{path}.type"),
        &strategy.r#type,
        &["RollingUpdate", "Recreate"],
    );
    let Some(rolling) = &strategy.rolling_update else {
        return;
    };
    let path = format!("{path}.rollingUpdate");
    if strategy.r#type == "Recreate" {
        errors.add(path, "is for type: RollingUpdate only");
        return;
    }
    let unavailable = share(
        errors,
        format!("{path}.maxUnavailable"),
        rolling.max_unavailable.as_ref(),
        true,
    );
    let surge = share(
        errors,
        format!("{path}.maxSurge"),
        rolling.max_surge.as_ref(),
        false,
    );
    if unavailable == Some(0) && surge == Some(0) {
        errors.add(
            format!("{path}.maxUnavailable"),
            "must not be 0 with maxSurge: 0: nothing could move",
        );
    }
}

/// A count or a percentage; its number.
fn share(errors: &mut Errors, path: String, share: Option<&IntOrString>, at_most_all: bool) -> Option<i32> {
    match share?.value.as_ref()? {
        Value::Number(count) => {
            errors.range(path, *count, 0, i32::MAX);
            Some(*count)
        }
        Value::Text(text) => {
            let digits = text
                .strip_suffix('%')
                .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            match digits.and_then(|digits| digits.parse::<i32>().ok()) {
                Some(percent) if at_most_all && percent > 100 => {
                    errors.add(path, format!("must not be more than 100%, is {percent}%"));
                    None
                }
                Some(percent) => Some(percent),
                None => {
                    let shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
                    errors.add(
                        path,
                        format!("must be a number or a percentage such as 25%, is `{shown}`"),
                    );
                    None
                }
            }
        }
    }
}
