//! Faults of the network: dropped packets, resets and delays.

use super::{ActiveFault, Fault};
use crate::{cluster::Cluster, proxy::Proxy, sandbox::PORT};

impl ActiveFault {
    pub(super) fn begin_in_network(&self, cluster: &Cluster<'_>) {
        match self.fault {
            Fault::ResetResponses => cluster.replica_proxy(self.slot).reset_responses(8),
            Fault::ResetRedisReplies => cluster.redis_proxies[self.slot].reset_responses(5),
            Fault::SlowClients => cluster.replica_proxy(self.slot).set_delay_ms(40),
            Fault::SlowRedis => cluster.redis_proxies.iter().for_each(|proxy| proxy.set_delay_ms(15)),
            _ => self.drop_packets(cluster),
        }
    }

    pub(super) fn end_in_network(&self, cluster: &Cluster<'_>) {
        match self.fault {
            Fault::ResetResponses => cluster.replica_proxy(self.slot).reset_responses(0),
            Fault::ResetRedisReplies => cluster.redis_proxies[self.slot].reset_responses(0),
            Fault::SlowClients => cluster.replica_proxy(self.slot).set_delay_ms(0),
            Fault::SlowRedis => cluster.redis_proxies.iter().for_each(|proxy| proxy.set_delay_ms(0)),
            _ => cluster.hosts[self.slot].stop_dropping_packets(),
        }
    }

    /// None for faults of other subjects.
    pub(super) fn count_network_effects(&self, cluster: &Cluster<'_>) -> Option<u64> {
        use Fault::*;
        Some(match self.fault {
            PartitionFromRedis | DropRedisRequests | DropRedisReplies | PartitionClients => {
                cluster.hosts[self.slot].dropped_packets()
            }
            ResetResponses => cluster.replica_proxy(self.slot).take_resets(),
            ResetRedisReplies => cluster.redis_proxies[self.slot].take_resets(),
            SlowClients => cluster.replica_proxy(self.slot).take_delayed(),
            SlowRedis => cluster.redis_proxies.iter().map(Proxy::take_delayed).sum(),
            _ => return None,
        })
    }

    fn drop_packets(&self, cluster: &Cluster<'_>) {
        let (host, redis) = (&cluster.hosts[self.slot], cluster.redis_proxies[self.slot].port.to_string());
        if matches!(self.fault, Fault::PartitionFromRedis | Fault::DropRedisRequests) {
            host.drop_packets("OUTPUT", &["--dport", &redis]);
        }
        if matches!(self.fault, Fault::PartitionFromRedis | Fault::DropRedisReplies) {
            host.drop_packets("INPUT", &["--sport", &redis]);
        }
        if self.fault == Fault::PartitionClients {
            host.drop_packets("OUTPUT", &["--sport", &PORT.to_string()]);
        }
    }
}
