//! Runs of our programs that the kernel skipped.
//!
//! A BPF program does not run while one of its kind is already running on the same CPU: in a softirq
//! in the middle of it, or, where programs can be preempted, in another task. The kernel counts the
//! runs it skips (`recursion_misses`, since 5.12: 9ed9e9ba2337), and such a run might have had
//! something to report.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};

use super::plan::Job;

/// Descriptors of the attached programs, with the job of each.
#[derive(Debug, Default)]
pub struct Skips(Vec<(Job, OwnedFd)>);

impl Skips {
    pub(super) fn watch(&mut self, job: Job, program: OwnedFd) {
        self.0.push((job, program));
    }

    /// Skipped runs of each job since the start; empty if the kernel does not report them.
    pub fn read(&self) -> Vec<(Job, u64)> {
        let mut skips: Vec<(Job, u64)> = Vec::new();
        for (job, program) in &self.0 {
            // Readable without capabilities, which bpf(2) would ask for.
            let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
            let Some(count) = fs::read_to_string(path).ok().and_then(|text| parse(&text)) else {
                continue;
            };
            match skips.iter_mut().find(|(other, _)| other == job) {
                Some((_, sum)) => *sum += count,
                None => skips.push((*job, count)),
            }
        }
        skips
    }
}

fn parse(fdinfo: &str) -> Option<u64> {
    let value = fdinfo.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_count_is_one_line_of_several() {
        let fdinfo =
            "pos:\t0\nprog_type:\t26\nrun_cnt:\t7\nrecursion_misses:\t60\nverified_insns:\t9\n";
        assert_eq!(parse(fdinfo), Some(60));
        assert_eq!(parse("pos:\t0\nprog_type:\t26\n"), None);
    }
}
