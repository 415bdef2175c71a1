//! What the verifier says about a program beyond yes and no.

use anyhow::{Context as _, Result};
use aya::programs::ProgramError;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How an attempt to load a program ended.
pub(super) enum Loading {
    Accepted,
    /// With the verifier's log.
    Refused(String),
    /// Before the verifier saw it.
    Failed,
}

impl From<Result<()>> for Loading {
    fn from(loaded: Result<()>) -> Self {
        let Err(error) = loaded else { return Self::Accepted };
        match error.downcast_ref() {
            Some(ProgramError::LoadError { verifier_log, .. }) => {
                Self::Refused(verifier_log.to_string())
            }
            _ => Self::Failed,
        }
    }
}

impl Loading {
    /// For a program that dereferences a pointer without checking it: whether the verifier knows that
    /// it may be NULL. `None`: refused for another reason, which proves nothing.
    pub(super) fn knows_null(&self) -> Option<bool> {
        match self {
            Self::Accepted => Some(false),
            Self::Refused(log) => log.contains("ptr_or_null_").then_some(true),
            Self::Failed => None,
        }
    }

    /// `processed 1234 insns (limit 1000000) ...`
    fn instructions(&self) -> Option<u32> {
        let Self::Refused(log) = self else { return None };
        log.rsplit_once("processed ")?.1.split_once(' ')?.0.parse().ok()
    }
}

/// Instructions that the verifier processes while `load` loads a program, which must be able to load.
/// The kernel reports this for loaded programs only since 5.16; its log always does, but aya returns
/// a log only with an error. So the load is made to fail after the verifier has said yes: it finds no
/// free file descriptor. `None`: the log does not say.
///
/// # Errors
/// If the limit of file descriptors cannot be lowered or restored.
pub(super) fn instructions(load: impl FnOnce() -> Result<()>) -> Result<Option<u32>> {
    let before = getrlimit(Resource::Nofile);
    let none = Rlimit { current: Some(0), ..before };
    setrlimit(Resource::Nofile, none).context("lowering the limit of file descriptors")?;
    let answer = Loading::from(load());
    setrlimit(Resource::Nofile, before).context("restoring the limit of file descriptors")?;
    Ok(answer.instructions())
}

#[cfg(test)]
mod tests {
    use super::Loading;

    fn refused(log: &str) -> Loading {
        Loading::Refused(log.to_owned())
    }

    #[test]
    fn only_the_verifiers_own_words_prove_that_it_knows_null() {
        // 6.12.107, 6.18.44 and 7.3.4.
        let knows = refused(
            "0: (79) r1 = *(u64 *)(r1 +0)\n1: (71) r0 = *(u8 *)(r1 +18)\n\
             R1 invalid mem access 'trusted_ptr_or_null_'\nprocessed 2 insns (limit 1000000)",
        );
        assert_eq!(knows.knows_null(), Some(true));
        // It assumes that the argument is never NULL: the crash that this is about.
        assert_eq!(Loading::Accepted.knows_null(), Some(false));
        // Refused for another reason, or never seen: this proves nothing.
        let other = refused("access beyond struct sock at off 1644 size 4\nprocessed 2 insns");
        assert_eq!(other.knows_null(), None);
        assert_eq!(refused("").knows_null(), None);
        assert_eq!(Loading::Failed.knows_null(), None);
    }

    #[test]
    fn the_count_is_read_from_the_log() {
        let log = "verification time 93 usec\nstack depth 0\nprocessed 1234 insns (limit 1000000) \
                   max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0\n";
        assert_eq!(refused(log).instructions(), Some(1234));
        assert_eq!(refused("R1 type=ctx expected=fp").instructions(), None);
        assert_eq!(Loading::Accepted.instructions(), None);
    }
}
