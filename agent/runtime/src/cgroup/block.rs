//! Limits of block I/O.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::{Cgroup, CgroupError, write};

/// v2's weight (1..10000) for v1's of block I/O (10..1000), as runc and crun convert.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9_999 / 990
}

/// A weight as it is written: the files that may take it, the first that is there does; none for what there is no such file
/// of.
struct Weight {
    what: &'static str,
    files: &'static [&'static str],
    /// Major and minor number; none for all others.
    device: Option<(i64, i64)>,
    weight: u16,
}

impl Weight {
    /// What goes into one of the files. BFQ takes v1's figures under v2 too.
    fn line(&self, file: &str) -> String {
        let weight = match file {
            "io.weight" => io_weight(self.weight),
            _ => self.weight.into(),
        };
        match self.device {
            Some((major, minor)) => format!("{major}:{minor} {weight}"),
            None => weight.to_string(),
        }
    }
}

/// All weights that are asked for. BFQ's own files are there only where BFQ is loaded; `leaf_weight` was CFQ's.
fn weights(block: &LinuxBlockIo, v2: bool) -> Vec<Weight> {
    let (own, of_device, leaf, leaf_of_device): (&[_], &[_], &[_], &[_]) = match v2 {
        true => (
            &["io.bfq.weight", "io.weight"],
            &["io.bfq.weight", "io.weight"],
            &[],
            &[],
        ),
        false => (
            &["blkio.bfq.weight", "blkio.weight"],
            &["blkio.bfq.weight_device", "blkio.weight_device"],
            &["blkio.leaf_weight"],
            &["blkio.leaf_weight_device"],
        ),
    };
    let mut all = Vec::new();
    let mut add = |what, files, device, weight: Option<u16>| {
        // As runc and crun: 0 is not to be changed.
        if let Some(weight) = weight.filter(|weight| *weight != 0) {
            all.push(Weight {
                what,
                files,
                device,
                weight,
            });
        }
    };
    add("block I/O weight", own, None, block.weight());
    add("block I/O leafWeight", leaf, None, block.leaf_weight());
    for one in block.weight_device().iter().flatten() {
        let device = Some((one.major(), one.minor()));
        add("block I/O weight of a device", of_device, device, one.weight());
        let what = "block I/O leafWeight of a device";
        add(what, leaf_of_device, device, one.leaf_weight());
    }
    all
}

impl Cgroup {
    pub(super) fn set_block_io(&self, block: &LinuxBlockIo) -> Result<(), CgroupError> {
        let v2 = self.layout.is_v2();
        let controller = if v2 { "io" } else { "blkio" };
        for weight in weights(block, v2) {
            let found = weight
                .files
                .iter()
                .find_map(|name| Some((self.file(controller, name).ok()?, weight.line(name))));
            let (file, line) = found.ok_or_else(|| CgroupError::Unsupported {
                what: weight.what.into(),
            })?;
            write(&file, &line)?;
        }
        let throttles = [
            (
                "rbps",
                "blkio.throttle.read_bps_device",
                block.throttle_read_bps_device(),
            ),
            (
                "wbps",
                "blkio.throttle.write_bps_device",
                block.throttle_write_bps_device(),
            ),
            (
                "riops",
                "blkio.throttle.read_iops_device",
                block.throttle_read_iops_device(),
            ),
            (
                "wiops",
                "blkio.throttle.write_iops_device",
                block.throttle_write_iops_device(),
            ),
        ];
        for (key, name, list) in throttles {
            for device in list.iter().flatten() {
                self.set_throttle(key, name, device)?;
            }
        }
        Ok(())
    }

    fn set_throttle(&self, key: &str, name: &str, device: &LinuxThrottleDevice) -> Result<(), CgroupError> {
        let (major, minor, rate) = (device.major(), device.minor(), device.rate());
        if self.layout.is_v2() {
            let rate = if rate == 0 {
                "max".to_owned()
            } else {
                rate.to_string()
            };
            write(
                &self.file("io", "io.max")?,
                &format!("{major}:{minor} {key}={rate}"),
            )
        } else {
            write(&self.file("blkio", name)?, &format!("{major}:{minor} {rate}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn block_weights_span_the_weights() {
        assert_eq!(io_weight(10), 1);
        assert_eq!(io_weight(100), 910);
        assert_eq!(io_weight(1000), 10_000);
        assert_eq!(io_weight(u16::MAX), 10_000);
        assert_eq!(io_weight(1), 1);
    }

    /// runtime-spec 1.2, config-linux.md, Block IO: a weight of a device overrides that of all.
    #[test]
    fn weights_of_devices_name_them_and_come_after_that_of_all() {
        let block = json!({"weight": 100, "leafWeight": 0, "weightDevice": [
            {"major": 8, "minor": 16, "weight": 500, "leafWeight": 300},
            {"major": 8, "minor": 0, "leafWeight": 20},
        ]});
        let block: LinuxBlockIo = serde_json::from_value(block).unwrap();
        let lines = |v2: bool, place: usize| -> Vec<(String, String)> {
            let all = weights(&block, v2);
            let file = |weight: &Weight| weight.files.get(place).or(weight.files.last()).copied();
            all.iter()
                .map(|weight| {
                    let file = file(weight).unwrap_or_default();
                    (file.to_owned(), weight.line(file))
                })
                .collect()
        };
        let pair = |file: &str, line: &str| (file.to_owned(), line.to_owned());
        assert_eq!(
            lines(false, 0),
            [
                pair("blkio.bfq.weight", "100"),
                pair("blkio.bfq.weight_device", "8:16 500"),
                pair("blkio.leaf_weight_device", "8:16 300"),
                pair("blkio.leaf_weight_device", "8:0 20"),
            ]
        );
        assert_eq!(lines(false, 1)[1], pair("blkio.weight_device", "8:16 500"));
        assert_eq!(
            lines(true, 0)[..2],
            [pair("io.bfq.weight", "100"), pair("io.bfq.weight", "8:16 500")]
        );
        assert_eq!(
            lines(true, 1)[..2],
            [pair("io.weight", "910"), pair("io.weight", "8:16 4950")]
        );
        // v2 has no leaves.
        assert_eq!(lines(true, 0)[2].0, "");
    }
}
