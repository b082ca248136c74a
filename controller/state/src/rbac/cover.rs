//! Whether some rules allow all that others allow (Kubernetes, component-helpers/auth/rbac/validation, `Covers`).

use proto::v1::PolicyRule;

use super::{has, has_resource, with_group};

/// Single rights that the rules of one role are taken apart into: each is compared with every rule that is held. A role for
/// fifty resources with ten verbs has 500; what has more is refused.
const PARTS_MAX: usize = 10_000;

/// What somebody would give without holding it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Uncovered {
    /// This right.
    #[error("{0}")]
    Right(String),
    /// Too many to look at.
    #[error("the role has more than {PARTS_MAX} single rights: write * or make several roles of it")]
    TooMany,
}

/// One verb on one thing.
struct Part<'a> {
    verb: &'a str,
    what: What<'a>,
}

enum What<'a> {
    Resource {
        group: &'a str,
        resource: &'a str,
        /// None: all.
        name: Option<&'a str>,
    },
    Path(&'a str),
}

pub(super) fn check(held: &[&PolicyRule], wanted: &[PolicyRule]) -> Result<(), Uncovered> {
    let mut left = PARTS_MAX;
    for rule in wanted {
        let count = count(rule).filter(|count| *count <= left);
        left -= count.ok_or(Uncovered::TooMany)?;
        each(
            rule,
            &mut |part| match held.iter().any(|held| covers(held, &part)) {
                true => Ok(()),
                false => Err(Uncovered::Right(shown(&part))),
            },
        )?;
    }
    Ok(())
}

/// None: more than can be counted.
fn count(rule: &PolicyRule) -> Option<usize> {
    let resources = rule
        .api_groups
        .len()
        .checked_mul(rule.resources.len())?
        .checked_mul(rule.resource_names.len().max(1))?;
    let things = resources.checked_add(rule.non_resource_ur_ls.len())?;
    things.checked_mul(rule.verbs.len())
}

fn each(
    rule: &PolicyRule,
    then: &mut impl FnMut(Part<'_>) -> Result<(), Uncovered>,
) -> Result<(), Uncovered> {
    let names: Vec<Option<&str>> = match rule.resource_names.as_slice() {
        [] => vec![None],
        names => names.iter().map(|name| Some(name.as_str())).collect(),
    };
    for verb in &rule.verbs {
        for group in &rule.api_groups {
            for resource in &rule.resources {
                for name in names.iter().copied() {
                    let what = What::Resource {
                        group,
                        resource,
                        name,
                    };
                    then(Part { verb, what })?;
                }
            }
        }
        for path in &rule.non_resource_ur_ls {
            let what = What::Path(path);
            then(Part { verb, what })?;
        }
    }
    Ok(())
}

fn covers(held: &PolicyRule, part: &Part<'_>) -> bool {
    has(&held.verbs, part.verb)
        && match part.what {
            What::Resource {
                group,
                resource,
                name,
            } => {
                has(&held.api_groups, group)
                    && has_resource(&held.resources, resource)
                    && (held.resource_names.is_empty()
                        || name.is_some_and(|name| held.resource_names.iter().any(|held| held == name)))
            }
            // A `*` at the end of a path means everything below it.
            What::Path(path) => held.non_resource_ur_ls.iter().any(|held| {
                held == path
                    || held
                        .strip_suffix('*')
                        .is_some_and(|below| path.starts_with(below))
            }),
        }
}

fn shown(part: &Part<'_>) -> String {
    match part.what {
        What::Path(path) => format!("{} {path}", part.verb),
        What::Resource {
            group,
            resource,
            name,
        } => {
            let name = name.map_or_else(String::new, |name| format!(" {name}"));
            format!("{} {}{name}", part.verb, with_group(resource, group))
        }
    }
}
