//! Carrying out the plan's steps for the pod as a whole. Each may be repeated, and none trusts an earlier one.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use prost::Message;
use proto::v1::Pod;
use runtime::monitor::SPEC;

use super::actor::{Actor, Monitor, Trouble};
use super::files;
use super::monitor::{self, Client, MonitorError};
use super::plan::Step;
use super::volume::Volumes;
use super::{container, selinux, spec};
use crate::network::PodNet;

/// Kubernetes' words for what failed.
pub(super) const SANDBOX: &str = "FailedCreatePodSandBox";
const MOUNT: &str = "FailedMount";
const KILL: &str = "FailedKillPod";

/// An error as an event tells it.
pub(super) fn trouble<E: std::error::Error + ?Sized>(
    reason: &'static str,
    what: &str,
) -> impl FnOnce(&E) -> Trouble {
    move |error| Trouble {
        reason,
        message: format!("{what}: {}", runtime::monitor::chain(error)),
    }
}

/// Work that waits for the disk or the kernel.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Trouble> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Trouble {
        reason: "Failed",
        message: format!("a worker of the agent died: {error}"),
    })
}

impl Actor {
    /// Does one step; afterwards what is observed shows its effect.
    pub(super) async fn execute(&mut self, step: &Step) -> Result<(), Trouble> {
        match step {
            Step::Allot => self.allot().await,
            Step::StartSandbox => self.start_sandbox().await,
            Step::PrepareVolumes => self.prepare_volumes().await,
            Step::AttachNetwork => self.attach().await,
            Step::FetchImage(index) => {
                self.fetch(*index);
                Ok(())
            }
            Step::Start(index) => self.start(*index).await,
            Step::Stop {
                container,
                grace,
                replaced,
            } => self.stop(*container, *grace, *replaced).await,
            Step::Kill(index) => self.kill(*index).await,
            Step::Collect(index) => self.collect(*index).await,
            Step::KillStray(id) => self.kill_stray(id).await,
            Step::RemoveStray(id) => self.remove_stray(id).await,
            Step::DetachNetwork => self.detach().await,
            Step::Shutdown => self.shutdown().await,
            Step::CleanUp => self.clean_up().await,
            Step::RemoveFiles => self.remove_files().await,
            Step::Release => self.release().await,
        }
    }

    /// The pod; a plan without one has no step that needs it.
    pub(super) fn pod(&self) -> Result<Arc<Pod>, Trouble> {
        self.pod.clone().ok_or_else(|| Trouble {
            reason: "Failed",
            message: "nothing is known of the pod".to_owned(),
        })
    }

    async fn allot(&mut self) -> Result<(), Trouble> {
        let pod = self.pod()?;
        let pod_spec = pod.spec.clone().unwrap_or_default();
        let want = spec::want(&pod_spec, selinux::is_enabled());
        let (node, uid) = (Arc::clone(&self.node), self.uid.clone());
        let slot = blocking(move || node.ledger.allot(&uid, want)).await?;
        let slot = slot.map_err(|error| trouble(SANDBOX, "Failed to create pod sandbox")(&error))?;
        self.slot = Some(slot);
        Ok(())
    }

    async fn start_sandbox(&mut self) -> Result<(), Trouble> {
        let pod = self.pod()?;
        let slot = self.slot.unwrap_or_default();
        let failed = "Failed to create pod sandbox";
        let cgroup = self.node.settings.pod_cgroup(&self.uid);
        let sandbox = spec::sandbox(&self.uid, &pod, &slot, cgroup);
        let sandbox = sandbox.map_err(|error| trouble(SANDBOX, failed)(&error))?;
        self.files = true;
        let paths = self.paths.clone();
        // Root's alone: who may write there may weaken every filter.
        let cache = self.node.settings.data_dir.join("seccomp-cache");
        let made = || -> Result<(), files::FileError> {
            files::make_dir(&cache, 0o700)?;
            files::make_dir(&paths.monitor, 0o700)?;
            fs::write(paths.pod(), pod.encode_to_vec()).map_err(files::failed("write", &paths.pod()))
        };
        made().map_err(|error| trouble(SANDBOX, failed)(&error))?;
        let starting = monitor::start(&self.node.settings.runtime, &self.paths.monitor, &cache, &sandbox)
            .map_err(|error| trouble(SANDBOX, failed)(&error))?;
        self.set_sandbox(sandbox);
        // Each sandbox runs its init containers; what ran in an earlier one is no more.
        for (init, container) in self.containers() {
            if init {
                self.record.container(&container.name).in_sandbox = false;
            }
        }
        self.volumes = false;
        let wake = Arc::clone(&self.view.wake);
        let (sender, ready) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let result = starting.ready().await;
            // The receiver is gone when the agent stops: the next one finds the monitor.
            drop(sender.send(result));
            wake.notify_one();
        });
        self.monitor = Monitor::Starting(ready);
        Ok(())
    }

    async fn prepare_volumes(&mut self) -> Result<(), Trouble> {
        let pod = self.pod()?;
        let slot = self.slot.unwrap_or_default();
        let (paths, configs) = (self.paths.clone(), Arc::clone(&self.configs));
        let account = match &mut self.account {
            Some(keeper) => keeper.content().await,
            None => Err("the pod has no token".to_owned()),
        };
        // Writable layers of runs that are no more; while some run, the others were removed at their end.
        let fresh = self
            .record
            .containers
            .values()
            .all(|container| container.current.is_none());
        let done = blocking(move || -> Result<(), Trouble> {
            let default = Default::default();
            let pod_spec = pod.spec.as_ref().unwrap_or(&default);
            let owner = container::owner(pod_spec, &slot);
            let owner = owner.map_err(|error| trouble(MOUNT, "MountVolume.SetUp failed")(&error))?;
            let files_failed = |error: files::FileError| trouble(MOUNT, "MountVolume.SetUp failed")(&error);
            if fresh {
                files::remove_tree(&paths.runs()).map_err(files_failed)?;
            }
            files::make_dir(&paths.data, 0o711).map_err(files_failed)?;
            files::write_etc(&paths, &pod, slot.address, &owner).map_err(files_failed)?;
            let namespace = pod.metadata.as_ref().map(|meta| meta.namespace.clone());
            let volumes = Volumes {
                spec: pod_spec,
                namespace: &namespace.unwrap_or_default(),
                configs: &configs,
                paths: &paths,
                owner: &owner,
                users: slot.ids.is_some() && spec::has_users(pod_spec),
            };
            volumes.prepare(&account).map_err(|error| Trouble {
                reason: MOUNT,
                message: runtime::monitor::chain(&error),
            })
        });
        done.await??;
        self.volumes = true;
        Ok(())
    }

    async fn attach(&mut self) -> Result<(), Trouble> {
        let failed = "Failed to create pod sandbox: failed to set up its network";
        let pod = self.pod()?;
        let Some(network) = self.node.network().await else {
            return Err(Trouble {
                reason: "NetworkNotReady",
                message: "network is not ready: no controller has told this node its range yet".to_owned(),
            });
        };
        let (Monitor::Up { state, .. }, Some(address)) =
            (&self.monitor, self.slot.and_then(|slot| slot.address))
        else {
            return Err(Trouble {
                reason: SANDBOX,
                message: format!("{failed}: it has no address"),
            });
        };
        let Some(fd) = state.namespaces.net else {
            return Err(Trouble {
                reason: SANDBOX,
                message: format!("{failed}: it has no namespace"),
            });
        };
        let path = PathBuf::from(format!("/proc/{}/fd/{fd}", state.pid));
        let netns = File::open(&path).map_err(|error: io::Error| trouble(SANDBOX, failed)(&error))?;
        let pod_net = PodNet {
            uid: self.uid.clone(),
            netns: netns.into(),
            address,
            bandwidth: spec::bandwidth(&pod),
            ports: pod.spec.as_ref().map(spec::host_ports).unwrap_or_default(),
        };
        self.traces = true;
        let attached = network.attach(&pod_net).await;
        attached.map_err(|error| trouble(SANDBOX, failed)(&error))?;
        self.attached = true;
        self.record.addressed = true;
        Ok(())
    }

    async fn detach(&mut self) -> Result<(), Trouble> {
        // Without a network nothing of the pod can stand in it: the interface has gone with its namespace.
        if let Some(network) = self.node.network().await {
            let detached = network.detach(&self.uid).await;
            detached.map_err(|error| trouble(KILL, "failed to take the pod off the network")(&error))?;
        }
        self.attached = false;
        self.traces = false;
        Ok(())
    }

    /// Asks the monitor for one thing, over a connection of its own: an answer that came late could be taken for the next.
    pub(super) async fn client(&mut self) -> Result<Client, MonitorError> {
        match Client::connect(&self.paths.monitor).await {
            Ok(client) => Ok(client),
            Err(error) => {
                let error = MonitorError::from(error);
                if error.is_gone() {
                    self.monitor = Monitor::Dead;
                }
                Err(error)
            }
        }
    }

    pub(super) async fn shutdown(&mut self) -> Result<(), Trouble> {
        let failed = "failed to end the pod's sandbox";
        let mut client = self
            .client()
            .await
            .map_err(|error| trouble(KILL, failed)(&error))?;
        match client.shutdown().await {
            Ok(()) => self.monitor = Monitor::Absent,
            Err(error) if error.is_gone() => {
                self.monitor = Monitor::Dead;
                return Ok(());
            }
            Err(error) => return Err(trouble(KILL, failed)(&error)),
        }
        self.forget_sandbox()
            .map_err(|error| trouble(KILL, failed)(&error))
    }

    fn forget_sandbox(&mut self) -> Result<(), files::FileError> {
        self.sandbox = None;
        self.view.lock().sandbox = None;
        self.strays_killed.clear();
        self.attached = false;
        files::remove_file(&self.paths.monitor.join(SPEC))
    }

    async fn clean_up(&mut self) -> Result<(), Trouble> {
        let failed = "failed to remove what the pod's monitor left";
        let sandbox = match &self.sandbox {
            Some(sandbox) => sandbox.as_ref().clone(),
            None => self.remains(),
        };
        let directory = self.paths.monitor.clone();
        let cleaned = blocking(move || runtime::monitor::cleanup(&sandbox, &directory)).await?;
        cleaned.map_err(|error| trouble(KILL, failed)(&error))?;
        self.monitor = Monitor::Absent;
        self.forget_sandbox()
            .map_err(|error| trouble(KILL, failed)(&error))?;
        if let Some(pod) = &self.pod {
            let message = "The pod's monitor ended; what it left was removed.".to_owned();
            self.node.events.record(pod, "Normal", "SandboxChanged", message);
        }
        Ok(())
    }

    async fn remove_files(&mut self) -> Result<(), Trouble> {
        let paths = self.paths.clone();
        let removed = blocking(move || files::remove_all(&paths)).await?;
        removed.map_err(|error| trouble(KILL, "failed to remove the pod's files")(&error))?;
        self.files = false;
        self.volumes = false;
        Ok(())
    }

    async fn release(&mut self) -> Result<(), Trouble> {
        let (node, uid, slot) = (Arc::clone(&self.node), self.uid.clone(), self.slot);
        let released = blocking(move || -> Result<(), Trouble> {
            let what = "failed to give back the pod's ids";
            if let Some(ids) = slot.and_then(|slot| slot.ids) {
                let removed = node.images.remove_shifted(ids.start, ids.count);
                removed.map_err(|error| trouble(KILL, what)(&error))?;
            }
            let released = node.ledger.release(&uid);
            released.map_err(|error| trouble(KILL, what)(&error))
        });
        released.await??;
        self.slot = None;
        self.saved = Vec::new();
        Ok(())
    }
}
