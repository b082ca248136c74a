//! SELinux labels of the store. A layer is mounted below overlays that have a label of their own, but a file that is mapped
//! is the layer's own (before Linux 6.5 for every check of its protection): containers must be allowed to read that.

use std::path::Path;

use super::ImageError;

/// What containers may read and run and not change, with its level: readable by every pair of categories.
const LABEL: &[u8] = b"system_u:object_r:container_ro_file_t:s0";
/// Directories whose files become layers; what is made in them has their type.
const DIRECTORIES: [&str; 3] = ["layers", "shifted", "tmp"];

/// Labels the store's directories, where the kernel has SELinux and its policy knows the type.
pub(super) fn label(store: &Path) -> Result<(), ImageError> {
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        return Ok(());
    }
    for name in DIRECTORIES {
        let path = store.join(name);
        match rustix::fs::lsetxattr(&path, "security.selinux", LABEL, rustix::fs::XattrFlags::empty()) {
            // A file system without labels has one for all of it.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(rustix::io::Errno::INVAL) => {
                tracing::warn!("SELinux's policy has no container_ro_file_t: see deploy/selinux");
            }
            Err(error) => return Err(ImageError::io("label", &path)(error.into())),
        }
    }
    Ok(())
}
