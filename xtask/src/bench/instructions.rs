//! Instructions of a guest that a write and a connection take: under QEMU's `-icount shift=0` each
//! is a nanosecond of the guest's clock, and the machine's load cannot change their number.

use anyhow::Result;

use super::Built;
use crate::vm;

/// Series, and hooks for writes that it has.
const KERNELS: [(&str, &[&str]); 2] =
    [("6.1", &["fentry", "kprobe"]), ("7.3", &["tp_btf", "raw_tp", "fentry", "kprobe"])];

pub(super) fn run(built: &Built) -> Result<String> {
    let mut all = String::new();
    for (series, hooks) in KERNELS {
        let paths = hooks.iter().map(|hook| {
            format!(
                "echo '@hook {hook}'\n/cost paths --object /bench.bpf.o --hook write={hook} \
                 --rounds 7 --writes 500 --connections 30\n"
            )
        });
        let files = [("cost", &*built.cost), ("bench.bpf.o", &*built.object)];
        let (release, said) = vm::once(series, &files, &paths.collect::<String>())?;
        all.push_str(&format!("# {release}\n{said}"));
    }
    Ok(all)
}
