//! Limits that few ask for and few machines have: huge pages, network classes and priorities, RDMA.

use oci_spec::runtime::{LinuxMemory, LinuxResources};

use super::{Cgroup, CgroupError, write};

impl Cgroup {
    pub(super) fn set_rare(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        for page in resources.hugepage_limits().iter().flatten() {
            let name = format!("hugetlb.{}", page.page_size());
            if page.page_size().contains('/') {
                return Err(CgroupError::Unsupported { what: name });
            }
            let suffix = if self.layout.is_v2() {
                "max"
            } else {
                "limit_in_bytes"
            };
            self.enable("hugetlb")?;
            let limit = page.limit().to_string();
            write(&self.file("hugetlb", &format!("{name}.{suffix}"))?, &limit)?;
            // What is reserved is not yet used, and would end the process at the first touch; kernels before 5.7 have no
            // such file.
            if let Ok(reserved) = self.file("hugetlb", &format!("{name}.rsvd.{suffix}")) {
                write(&reserved, &limit)?;
            }
        }
        if let Some(network) = resources.network() {
            if let Some(class) = network.class_id().filter(|class| *class != 0) {
                write(&self.file_v1("net_cls", "net_cls.classid")?, &class.to_string())?;
            }
            for one in network.priorities().iter().flatten() {
                let line = format!("{} {}", one.name(), one.priority());
                write(&self.file_v1("net_prio", "net_prio.ifpriomap")?, &line)?;
            }
        }
        for (device, limit) in resources.rdma().iter().flatten() {
            let max = |value: Option<u32>| value.map_or_else(|| "max".to_owned(), |value| value.to_string());
            let line = format!(
                "{device} hca_handle={} hca_object={}",
                max(limit.hca_handles()),
                max(limit.hca_objects())
            );
            self.enable("rdma")?;
            write(&self.file("rdma", "rdma.max")?, &line)?;
        }
        Ok(())
    }

    /// As `file`, of a controller that v2 has not.
    fn file_v1(&self, controller: &str, name: &str) -> Result<std::path::PathBuf, CgroupError> {
        if self.layout.is_v2() {
            return Err(CgroupError::Unsupported {
                what: format!("{name} with cgroup v2"),
            });
        }
        self.file(controller, name)
    }

    /// runtime-spec 1.2, config-linux.md, Memory, checkBeforeUpdate: a limit below what is in use is refused instead of
    /// ending processes.
    pub(super) fn check_before(&self, memory: &LinuxMemory) -> Result<(), CgroupError> {
        let Some(limit) = memory.limit().filter(|limit| *limit > 0) else {
            return Ok(());
        };
        if memory.check_before_update() != Some(true) {
            return Ok(());
        }
        let usage = self.stats()?.memory_usage;
        if usage > limit.unsigned_abs() {
            return Err(CgroupError::InUse { limit, usage });
        }
        Ok(())
    }
}
