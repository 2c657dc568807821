//! Parses the answer of status.lua.

use redis::{FromRedisValue, Value};

use crate::{
    api::lock_status::{LockKind, LockState, LockStatus, Waiter},
    fencing::FencingToken,
    lock::{error::AttemptError, redis::client::replica_of},
};

pub(super) fn parse(values: Vec<Value>) -> Result<LockStatus, AttemptError> {
    let mut values = values.into_iter();
    // Another program's lock may hold any bytes.
    let holder: Option<Vec<u8>> = next(&mut values)?;
    let key_type: String = next(&mut values)?;
    let ttl_ms: i64 = next(&mut values)?;
    let token: FencingToken = next(&mut values)?;
    let mut waiters = Vec::new();
    while values.len() > 0 {
        let id: String = next(&mut values)?;
        let waited_ms = next(&mut values)?;
        waiters.push(Waiter { replica: replica_of(&id).unwrap_or_default().to_owned(), waited_ms });
    }
    let replica = holder.as_deref().and_then(|id| replica_of(std::str::from_utf8(id).ok()?));
    let state = match (&holder, replica) {
        (None, _) => LockState::Free,
        (Some(_), Some(_)) => LockState::Held,
        (Some(_), None) => LockState::Foreign,
    };
    Ok(LockStatus {
        lock: LockKind::Redis,
        state,
        foreign_type: (state == LockState::Foreign).then_some(key_type),
        holder: replica.map(str::to_owned),
        token: (state == LockState::Held && token > 0).then_some(token),
        ttl_ms: u64::try_from(ttl_ms).ok().filter(|_| state != LockState::Free),
        waiters,
    })
}

fn next<T: FromRedisValue>(values: &mut impl Iterator<Item = Value>) -> Result<T, AttemptError> {
    let value = values.next().ok_or(AttemptError::Unexpected("the lock's status is incomplete"))?;
    redis::from_redis_value(value).map_err(|_| AttemptError::Unexpected("the lock's status has an unexpected type"))
}
