//! Serves the kernel's FUSE calls from the state.

use std::{
    ffi::OsStr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenAccMode,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::{fs::FallocateFlags, io::Errno};

use super::{
    file::BLOCK,
    stall::Stall,
    state::{Answer, State},
};

/// Without caching in the kernel, so that every process sees each change at once.
const TTL: Duration = Duration::ZERO;
const GENERATION: Generation = Generation(0);
/// Bypasses the kernel's page cache: each call arrives as it was made, and may be served in part.
const DIRECT: FopenFlags = FopenFlags::FOPEN_DIRECT_IO;
const NAME_MAX: u32 = 255;

pub(super) struct Served {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) stall: Stall,
}

fn text(name: &OsStr) -> Answer<&str> {
    name.to_str().ok_or(Errno::ILSEQ)
}

fn refusal(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

fn empty(reply: ReplyEmpty, answer: Answer<()>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(refusal(e)),
    }
}

fn entry(reply: ReplyEntry, answer: Answer<FileAttr>) {
    match answer {
        Ok(attr) => reply.entry(&TTL, &attr, GENERATION),
        Err(e) => reply.error(refusal(e)),
    }
}

fn attributes(state: &State, ino: INodeNo) -> Answer<FileAttr> {
    if ino == INodeNo::ROOT {
        return Ok(root());
    }
    let file = state.file(ino.0)?;
    Ok(FileAttr {
        size: file.len(),
        blocks: file.room() / 512,
        atime: file.accessed,
        mtime: file.modified,
        ctime: file.changed,
        kind: FileType::RegularFile,
        perm: (file.mode & 0o7777) as u16,
        nlink: state.names.of(ino.0).count() as u32,
        uid: file.uid,
        gid: file.gid,
        ..blank(ino)
    })
}

fn root() -> FileAttr {
    FileAttr { kind: FileType::Directory, perm: 0o755, nlink: 2, ..blank(INodeNo::ROOT) }
}

fn blank(ino: INodeNo) -> FileAttr {
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK as u32,
        flags: 0,
    }
}

fn time(of: TimeOrNow) -> SystemTime {
    match of {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

impl Served {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics holding it")
    }

    fn open_file(&self, ino: INodeNo, flags: OpenFlags) -> Answer<FileHandle> {
        let mut state = self.state();
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            state.may_change()?;
        }
        state.open(ino.0).map(FileHandle)
    }

    fn create_file(&self, req: &Request, name: &OsStr, mode: u32) -> Answer<(FileAttr, FileHandle)> {
        let mut state = self.state();
        // The kernel has found no such name and keeps the directory locked, so this call must create it.
        let ino = state.create(text(name)?, mode, req.uid(), req.gid())?;
        let handle = FileHandle(state.open(ino)?);
        Ok((attributes(&state, INodeNo(ino))?, handle))
    }

    fn allocate(&self, ino: INodeNo, offset: u64, length: u64, mode: i32) -> Answer<()> {
        let keep_size = match FallocateFlags::from_bits_retain(mode as u32) {
            FallocateFlags::KEEP_SIZE => true,
            mode if mode.is_empty() => false,
            _ => return Err(Errno::OPNOTSUPP),
        };
        self.state().allocate(ino.0, offset.saturating_add(length), keep_size)
    }
}

impl Filesystem for Served {
    fn lookup(&self, req: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        let state = self.state();
        entry(reply, text(name).and_then(|name| state.find(name)).and_then(|ino| attributes(&state, INodeNo(ino))));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        match attributes(&self.state(), ino) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(e) => reply.error(refusal(e)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        let mut state = self.state();
        let mut set = || {
            state.may_change()?;
            if let Some(size) = size {
                state.resize(ino.0, size)?;
            }
            let file = state.file_mut(ino.0)?;
            file.mode = mode.unwrap_or(file.mode);
            file.uid = uid.unwrap_or(file.uid);
            file.gid = gid.unwrap_or(file.gid);
            file.accessed = atime.map_or(file.accessed, time);
            file.modified = mtime.map_or(file.modified, time);
            file.changed = SystemTime::now();
            attributes(&state, ino)
        };
        match set() {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(e) => reply.error(refusal(e)),
        }
    }

    fn unlink(&self, req: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        empty(reply, text(name).and_then(|name| self.state().unlink(name)));
    }

    fn rename(
        &self,
        req: &Request,
        _: INodeNo,
        from: &OsStr,
        _: INodeNo,
        to: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        let rename = || self.state().rename(text(from)?, text(to)?, flags);
        empty(reply, rename());
    }

    fn link(&self, req: &Request, ino: INodeNo, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        let mut state = self.state();
        let linked = text(name).and_then(|name| state.link(ino.0, name));
        entry(reply, linked.and_then(|()| attributes(&state, ino)));
    }

    fn create(&self, req: &Request, _: INodeNo, name: &OsStr, mode: u32, _umask: u32, _flags: i32, reply: ReplyCreate) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        match self.create_file(req, name, mode) {
            Ok((attr, handle)) => reply.created(&TTL, &attr, GENERATION, handle, DIRECT),
            Err(e) => reply.error(refusal(e)),
        }
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        match self.open_file(ino, flags) {
            Ok(handle) => reply.opened(handle, DIRECT),
            Err(e) => reply.error(refusal(e)),
        }
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        match self.state().file(ino.0) {
            Ok(file) => {
                let rest = file.content().get(offset as usize..).unwrap_or_default();
                reply.data(&rest[..rest.len().min(size as usize)]);
            }
            Err(e) => reply.error(refusal(e)),
        }
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        match self.state().write(ino.0, offset, data) {
            Ok(taken) => reply.written(taken as u32),
            Err(e) => reply.error(refusal(e)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        // This call arrives some time after the close, possibly after a power cut.
        if let Ok(file) = self.state().file_mut(ino.0) {
            file.close(handle.0);
        }
        reply.ok();
    }

    fn fsync(&self, req: &Request, ino: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        empty(reply, self.state().sync(ino.0, handle.0));
    }

    fn readdir(&self, req: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        let state = self.state();
        let dots = [(".", INodeNo::ROOT, FileType::Directory), ("..", INodeNo::ROOT, FileType::Directory)];
        let files = state.names.all().map(|(name, ino)| (name, INodeNo(ino), FileType::RegularFile));
        for (next, (name, ino, kind)) in (1..).zip(dots.into_iter().chain(files)).skip(offset as usize) {
            if reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        self.state().names.sync();
        reply.ok();
    }

    fn statfs(&self, req: &Request, _: INodeNo, reply: ReplyStatfs) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        let state = self.state();
        let (all, left) = (state.room_in_all() / BLOCK, state.room_left() / BLOCK);
        reply.statfs(all, left, left, u64::from(u32::MAX), u64::from(u32::MAX), BLOCK as u32, NAME_MAX, BLOCK as u32);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if let Err(e) = self.stall.wait(req) {
            return reply.error(refusal(e));
        }
        empty(reply, self.allocate(ino, offset, length, mode));
    }
}
