//! Files and directories of the node.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use proto::v1::HostPathVolumeSource;

use super::VolumeError;

/// Looks whether the path is what its type says, and makes it where the type says so (Kubernetes, "hostPath volume
/// types"). A path without a type is taken as it is when the container starts.
pub(super) fn prepare(source: &HostPathVolumeSource) -> Result<(), VolumeError> {
    let path = Path::new(&source.path);
    let failed = |action: &'static str| {
        let path = path.to_owned();
        move |error: io::Error| VolumeError::HostPath {
            action,
            path,
            source: error,
        }
    };
    match source.r#type.as_str() {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path).map_err(failed("create"))?;
        }
        "FileOrCreate" if !path.exists() => {
            let made: io::Result<File> = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(path);
            match made {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("create")(error));
                }
                _ => {}
            }
        }
        _ => {}
    }
    let (kind, holds): (&'static str, fn(&fs::FileType) -> bool) = match source.r#type.as_str() {
        "DirectoryOrCreate" | "Directory" => ("directory", fs::FileType::is_dir),
        "FileOrCreate" | "File" => ("file", fs::FileType::is_file),
        "Socket" => ("socket file", |kind| kind.is_socket()),
        "CharDevice" => ("character device", |kind| kind.is_char_device()),
        "BlockDevice" => ("block device", |kind| kind.is_block_device()),
        _ => return Ok(()),
    };
    let found = fs::metadata(path).map_err(failed("look at"))?.file_type();
    match holds(&found) {
        true => Ok(()),
        false => Err(VolumeError::HostPathType {
            path: PathBuf::from(path),
            kind,
        }),
    }
}
