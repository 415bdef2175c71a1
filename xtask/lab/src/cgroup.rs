//! Cgroups that tests create, and their removal.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// Removes a cgroup and those below it; what cannot be removed is found by the next run.
pub(crate) fn remove_tree(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    // A process that has just ended may not be gone yet.
    for _ in 0..50 {
        if fs::remove_dir(directory).is_ok() || !directory.exists() {
            return;
        }
        sleep(Duration::from_millis(20));
    }
}
