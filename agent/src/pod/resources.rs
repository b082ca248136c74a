//! Requests and limits as the runtime takes them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, LinuxThrottleDevice,
    LinuxThrottleDeviceBuilder,
};
use proto::v1::{Container, PodSpec, Quantity};

/// Period of CPU limits, in microseconds: the kernel's and Kubernetes' own.
const PERIOD_US: u64 = 100_000;
/// Least quota that the kernel takes.
const QUOTA_US_MIN: i64 = 1_000;
/// Shares of a whole CPU.
const SHARES_OF_CPU: i64 = 1_024;
/// Least and most shares that the kernel takes.
const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;
/// Most processes of a container: a fork bomb ends there, and no ordinary program comes near.
pub(super) const PIDS_MAX: i64 = 4_096;

/// Why limits cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResourceError {
    #[error("invalid amount of {name}")]
    Quantity {
        name: String,
        source: model::quantity::QuantityError,
    },
    #[error("failed to describe a limit of block I/O")]
    Throttle(#[source] oci_spec::OciSpecError),
    #[error("block I/O cannot be limited: {} lies on no block device", .path.display())]
    NoDevice { path: PathBuf },
    #[error("failed to find the block device below {}", .path.display())]
    Device { path: PathBuf, source: io::Error },
}

/// A block device by its numbers.
pub(super) type Device = (i64, i64);

fn amount(
    amounts: Option<&BTreeMap<String, Quantity>>,
    name: &str,
) -> Result<Option<model::quantity::Amount>, ResourceError> {
    let Some(quantity) = amounts.and_then(|amounts| amounts.get(name)) else {
        return Ok(None);
    };
    match model::quantity::of(quantity) {
        Ok(amount) if amount.is_zero() => Ok(None),
        Ok(amount) => Ok(Some(amount)),
        Err(source) => Err(ResourceError::Quantity {
            name: name.to_owned(),
            source,
        }),
    }
}

/// What a container asks for, in the kernel's units; none and 0 where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Asked {
    cpu_request_m: i64,
    cpu_limit_m: Option<i64>,
    memory_request: Option<i64>,
    memory_limit: Option<i64>,
}

impl Asked {
    fn of(container: &Container) -> Result<Self, ResourceError> {
        let resources = container.resources.as_ref();
        let limits = resources.map(|resources| &resources.limits);
        let requests = resources.map(|resources| &resources.requests);
        let cpu_limit_m = amount(limits, "cpu")?.map(|amount| amount.cpu_millis());
        let memory_limit = amount(limits, "memory")?.map(|amount| amount.bytes());
        Ok(Self {
            cpu_request_m: amount(requests, "cpu")?
                .map(|amount| amount.cpu_millis())
                .or(cpu_limit_m)
                .unwrap_or(0),
            cpu_limit_m,
            memory_request: amount(requests, "memory")?.map(|amount| amount.bytes()),
            memory_limit,
        })
    }

    /// Of both together.
    fn and(self, other: Self) -> Self {
        let both = |a: Option<i64>, b: Option<i64>| Some(a?.saturating_add(b?));
        Self {
            cpu_request_m: self.cpu_request_m.saturating_add(other.cpu_request_m),
            cpu_limit_m: both(self.cpu_limit_m, other.cpu_limit_m),
            memory_request: both(self.memory_request, other.memory_request),
            memory_limit: both(self.memory_limit, other.memory_limit),
        }
    }

    /// The larger of each; no limit is the largest.
    fn or_more(self, other: Self) -> Self {
        let most = |a: Option<i64>, b: Option<i64>| Some(a?.max(b?));
        Self {
            cpu_request_m: self.cpu_request_m.max(other.cpu_request_m),
            cpu_limit_m: most(self.cpu_limit_m, other.cpu_limit_m),
            memory_request: most(self.memory_request, other.memory_request),
            memory_limit: most(self.memory_limit, other.memory_limit),
        }
    }

    fn cpu(self) -> LinuxCpu {
        let shares = self.cpu_request_m.saturating_mul(SHARES_OF_CPU) / 1_000;
        let mut cpu = LinuxCpu::default();
        cpu.set_shares(u64::try_from(shares.clamp(SHARES_MIN, SHARES_MAX)).ok());
        if let Some(limit) = self.cpu_limit_m {
            let quota = limit.saturating_mul(PERIOD_US as i64 / 1_000).max(QUOTA_US_MIN);
            cpu.set_period(Some(PERIOD_US)).set_quota(Some(quota));
        }
        cpu
    }
}

fn pids(limit: i64) -> LinuxPids {
    let mut pids = LinuxPids::default();
    pids.set_limit(limit);
    pids
}

/// A container's limits. `device` is where its writable layer lies, asked for when it is needed.
pub(super) fn container(
    container: &Container,
    device: impl FnOnce() -> Result<Device, ResourceError>,
) -> Result<LinuxResources, ResourceError> {
    let asked = Asked::of(container)?;
    let mut resources = LinuxResources::default();
    resources
        .set_cpu(Some(asked.cpu()))
        .set_pids(Some(pids(PIDS_MAX)));
    if asked.memory_limit.is_some() || asked.memory_request.is_some() {
        let mut memory = LinuxMemory::default();
        memory
            .set_limit(asked.memory_limit)
            .set_reservation(asked.memory_request);
        // A limit is one of memory, not of memory and as much swap as there is (where the kernel counts swap).
        if asked.memory_limit.is_some() && Path::new("/proc/swaps").exists() {
            memory.set_swap(asked.memory_limit);
        }
        resources.set_memory(Some(memory));
    }
    if let Some(block) = block_io(container, device)? {
        resources.set_block_io(Some(block));
    }
    Ok(resources)
}

fn block_io(
    container: &Container,
    device: impl FnOnce() -> Result<Device, ResourceError>,
) -> Result<Option<LinuxBlockIo>, ResourceError> {
    let limits = container.resources.as_ref().map(|resources| &resources.limits);
    let rate = |name: &str| -> Result<Option<u64>, ResourceError> {
        Ok(amount(limits, name)?.and_then(|amount| u64::try_from(amount.bytes()).ok()))
    };
    let rates = [
        rate("bulkhead.io/read-bps")?,
        rate("bulkhead.io/write-bps")?,
        rate("bulkhead.io/read-iops")?,
        rate("bulkhead.io/write-iops")?,
    ];
    if rates.iter().all(Option::is_none) {
        return Ok(None);
    }
    let (major, minor) = device()?;
    let throttle = |rate: Option<u64>| -> Result<Option<Vec<LinuxThrottleDevice>>, ResourceError> {
        let Some(rate) = rate else { return Ok(None) };
        let builder = LinuxThrottleDeviceBuilder::default();
        let built = builder.major(major).minor(minor).rate(rate).build();
        Ok(Some(vec![built.map_err(ResourceError::Throttle)?]))
    };
    let [read_bps, write_bps, read_iops, write_iops] = rates;
    let mut block = LinuxBlockIo::default();
    block
        .set_throttle_read_bps_device(throttle(read_bps)?)
        .set_throttle_write_bps_device(throttle(write_bps)?)
        .set_throttle_read_iops_device(throttle(read_iops)?)
        .set_throttle_write_iops_device(throttle(write_iops)?);
    Ok(Some(block))
}

/// The pod's group: what its containers may use together, and not less than an init container alone.
pub(super) fn pod(spec: &PodSpec) -> Result<LinuxResources, ResourceError> {
    let mut main: Option<Asked> = None;
    for container in &spec.containers {
        let asked = Asked::of(container)?;
        main = Some(main.map_or(asked, |sum| sum.and(asked)));
    }
    let mut all = main.unwrap_or_default();
    for container in &spec.init_containers {
        all = all.or_more(Asked::of(container)?);
    }
    let mut resources = LinuxResources::default();
    let count = i64::try_from(spec.containers.len().max(1)).unwrap_or(i64::MAX);
    resources
        .set_cpu(Some(all.cpu()))
        .set_pids(Some(pids(PIDS_MAX.saturating_mul(count))));
    if let Some(limit) = all.memory_limit {
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(limit));
        resources.set_memory(Some(memory));
    }
    Ok(resources)
}

/// The whole disk that a directory lies on: only those can be limited.
pub(super) fn device_of(path: &Path) -> Result<Device, ResourceError> {
    let failed = |source| ResourceError::Device {
        path: path.to_owned(),
        source,
    };
    let device = fs::metadata(path).map_err(failed)?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    if !link.exists() {
        return Err(ResourceError::NoDevice {
            path: path.to_owned(),
        });
    }
    if !link.join("partition").exists() {
        return Ok((major.into(), minor.into()));
    }
    let disk = fs::canonicalize(&link).map_err(failed)?;
    let numbers = disk.parent().unwrap_or(&disk).join("dev");
    let text = fs::read_to_string(&numbers).map_err(failed)?;
    let parsed = text
        .trim()
        .split_once(':')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}

/// How willing the kernel is to end the container's processes when the machine runs out of memory, by Kubernetes' rule
/// ("Node-pressure Eviction"): the more a container has asked for, the less. `own` is ours, below which only a stronger
/// process may go.
pub(super) fn oom_score_adj(spec: &PodSpec, container: &Container, machine_bytes: i64, own: i32) -> i32 {
    let all = || spec.containers.iter().chain(&spec.init_containers);
    let asked: Vec<Asked> = all().filter_map(|container| Asked::of(container).ok()).collect();
    let nothing = |asked: &Asked| {
        asked.cpu_request_m == 0 && asked.memory_request.is_none() && asked.memory_limit.is_none()
    };
    if asked.iter().all(nothing) {
        return 1_000;
    }
    let guaranteed = asked.iter().all(|asked| {
        asked.cpu_limit_m == Some(asked.cpu_request_m)
            && asked.memory_limit.is_some()
            && asked.memory_request.unwrap_or_default() == asked.memory_limit.unwrap_or_default()
    });
    if guaranteed {
        return own.max(-997);
    }
    let request = Asked::of(container).ok().and_then(|asked| asked.memory_request);
    let part = request
        .unwrap_or(0)
        .saturating_mul(1_000)
        .checked_div(machine_bytes)
        .unwrap_or(0);
    i32::try_from((1_000 - part).clamp(2, 999))
        .unwrap_or(999)
        .max(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::ResourceRequirements;

    fn with(limits: &[(&str, &str)], requests: &[(&str, &str)]) -> Container {
        let map = |list: &[(&str, &str)]| {
            list.iter()
                .map(|(name, text)| {
                    let text = (*text).to_owned();
                    ((*name).to_owned(), Quantity { text })
                })
                .collect()
        };
        Container {
            resources: Some(ResourceRequirements {
                limits: map(limits),
                requests: map(requests),
            }),
            ..Container::default()
        }
    }

    fn no_device() -> Result<Device, ResourceError> {
        panic!("no limit asks for the device")
    }

    #[test]
    fn half_a_cpu_and_memory_are_the_kernels_figures() {
        let resources = container(
            &with(
                &[("cpu", "500m"), ("memory", "1Gi")],
                &[("cpu", "50m"), ("memory", "500Mi")],
            ),
            no_device,
        )
        .unwrap();
        let cpu = resources.cpu().clone().unwrap();
        assert_eq!(
            (cpu.quota(), cpu.period(), cpu.shares()),
            (Some(50_000), Some(100_000), Some(51))
        );
        let memory = resources.memory().unwrap();
        assert_eq!(
            (memory.limit(), memory.reservation()),
            (Some(1 << 30), Some(500 << 20))
        );
        assert_eq!(resources.pids().unwrap().limit(), PIDS_MAX);
        assert!(resources.block_io().is_none());
    }

    #[test]
    fn nothing_asked_for_still_bounds_processes() {
        let resources = container(&Container::default(), no_device).unwrap();
        assert_eq!(resources.pids().unwrap().limit(), PIDS_MAX);
        assert_eq!(resources.cpu().clone().unwrap().shares(), Some(2));
        assert!(resources.memory().is_none());
    }

    #[test]
    fn block_limits_name_the_device() {
        let limits = [
            ("bulkhead.io/write-bps", "10Mi"),
            ("bulkhead.io/read-iops", "100"),
        ];
        let resources = container(&with(&limits, &[]), || Ok((254, 16))).unwrap();
        let block = resources.block_io().clone().unwrap();
        let write = block.throttle_write_bps_device().clone().unwrap();
        assert_eq!(
            (write[0].major(), write[0].minor(), write[0].rate()),
            (254, 16, 10 << 20)
        );
        assert_eq!(block.throttle_read_iops_device().clone().unwrap()[0].rate(), 100);
        assert_eq!(*block.throttle_read_bps_device(), None);
    }

    #[test]
    fn a_pod_may_use_what_its_containers_may_together() {
        let limited = with(&[("cpu", "1"), ("memory", "64Mi")], &[]);
        let spec = PodSpec {
            containers: vec![limited.clone(), limited.clone()],
            init_containers: vec![with(&[("cpu", "500m"), ("memory", "1Gi")], &[])],
            ..PodSpec::default()
        };
        let resources = pod(&spec).unwrap();
        assert_eq!(resources.cpu().clone().unwrap().quota(), Some(200_000));
        assert_eq!(resources.memory().unwrap().limit(), Some(1 << 30));
        assert_eq!(resources.pids().unwrap().limit(), 2 * PIDS_MAX);
        // One without a limit: the pod has none.
        let spec = PodSpec {
            containers: vec![limited, Container::default()],
            ..PodSpec::default()
        };
        assert!(pod(&spec).unwrap().memory().is_none());
        assert_eq!(pod(&spec).unwrap().cpu().clone().unwrap().quota(), None);
    }

    #[test]
    fn those_who_asked_for_nothing_go_first() {
        let score = |container: Container, own| {
            let spec = PodSpec {
                containers: vec![container.clone()],
                ..PodSpec::default()
            };
            oom_score_adj(&spec, &container, 10 << 30, own)
        };
        assert_eq!(score(Container::default(), 0), 1_000);
        let guaranteed = with(
            &[("cpu", "1"), ("memory", "1Gi")],
            &[("cpu", "1"), ("memory", "1Gi")],
        );
        assert_eq!(score(guaranteed.clone(), -999), -997);
        assert_eq!(score(guaranteed, 0), 0);
        assert_eq!(score(with(&[], &[("memory", "1Gi")]), -999), 900);
    }
}
