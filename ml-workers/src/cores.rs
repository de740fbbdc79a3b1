//! Which cores of the processor a thread may run on.

use std::io;

/// The cores that this process may run on, ascending.
pub fn allowed() -> io::Result<Vec<u32>> {
    system::allowed()
}

/// Keeps the calling thread on one core from now on.
pub fn keep_to(core: u32) -> io::Result<()> {
    system::keep_to(core)
}

#[cfg(target_os = "linux")]
mod system {
    use std::io;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    pub fn allowed() -> io::Result<Vec<u32>> {
        let set = sched_getaffinity(None)?;
        Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).map(|core| core as u32).collect())
    }

    pub fn keep_to(core: u32) -> io::Result<()> {
        let mut set = CpuSet::new();
        set.set(core as usize);
        Ok(sched_setaffinity(None, &set)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;

    fn absent<T>() -> io::Result<T> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "threads are kept to cores on Linux only"))
    }

    pub fn allowed() -> io::Result<Vec<u32>> {
        absent()
    }

    pub fn keep_to(_: u32) -> io::Result<()> {
        absent()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_kept_to_a_core_and_others_are_not() {
        let all = allowed().unwrap();
        assert!(!all.is_empty());
        let last = *all.last().unwrap();
        let kept = std::thread::spawn(move || {
            keep_to(last).unwrap();
            allowed().unwrap()
        });
        assert_eq!(kept.join().unwrap(), [last]);
        assert_eq!(allowed().unwrap(), all, "this thread as before");
        assert!(keep_to(CORES_MAX).is_err(), "no machine has that many");
    }

    const CORES_MAX: u32 = 1_000;
}
