//! Room on the disk that is given up when there is no other: for the ends of what is under way.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate};

/// Bytes of the reserve.
pub(crate) const RESERVE_BYTES: u64 = 8 * 1024 * 1024;

/// A file that holds nothing but room.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    is_held: bool,
}

impl Reserve {
    /// Takes the reserve in a folder if there is room.
    pub(crate) fn take_in(folder: &Path) -> Self {
        let mut reserve = Self { path: folder.join("reserve"), is_held: false };
        reserve.take();
        reserve
    }

    /// Whether it is there.
    pub(crate) fn is_held(&self) -> bool {
        self.is_held
    }

    /// Takes it again if there is room; says whether it is there.
    pub(crate) fn take(&mut self) -> bool {
        if !self.is_held {
            self.is_held = self.allocate().is_ok();
            if !self.is_held {
                // Part of it would be room that nobody can use.
                drop(fs::remove_file(&self.path));
            }
        }
        self.is_held
    }

    fn allocate(&self) -> io::Result<()> {
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&self.path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES) {
            Ok(()) => Ok(()),
            // A file system that cannot promise room: writing takes it.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                io::copy(&mut io::Read::take(io::repeat(0), RESERVE_BYTES), &mut &file)?;
                file.sync_data()
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the room up; says whether there was any.
    pub(crate) fn give_up(&mut self) -> bool {
        std::mem::take(&mut self.is_held) && fs::remove_file(&self.path).is_ok()
    }
}
