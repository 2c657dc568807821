//! Growth of buffers that may become large.

/// From this size on, a buffer counts as large.
const LARGE_FROM: usize = 1 << 20;
/// glibc returns a freed allocation of more than 32 MiB to the system, and moves it without a copy when it grows. The smaller pieces that
/// a buffer leaves behind while it doubles stay with the process: up to 35 MiB for each batch of the largest size. Memory that is not
/// written yet costs nothing.
const LARGE_CAPACITY: usize = 40 << 20;

/// Makes room for more bytes.
pub(super) fn grow(buffer: &mut Vec<u8>, bytes: usize) {
    let needed = buffer.len() + bytes;
    if needed <= buffer.capacity() {
        return;
    }
    if (LARGE_FROM..LARGE_CAPACITY).contains(&needed) {
        buffer.reserve_exact(LARGE_CAPACITY - buffer.len());
    } else {
        buffer.reserve(bytes);
    }
}
