//! Snapshots on a real Patroni cluster: one for all nodes, from a replica, whoever leads.

use crate::support::patroni::{Cluster, wait};

#[test]
fn a_cluster_starts_pauses_and_switches() {
    let Some(cluster) = Cluster::start("a_cluster_starts_pauses_and_switches", 2) else { return };
    let leader = cluster.leader().unwrap();
    cluster.sql(leader.port, "create table t as select generate_series(1, 1000) n");
    let replica = cluster.node(&cluster.members("replica", "streaming")[0]);
    wait("the table on the replica", || cluster.sql(replica.port, "select to_regclass('t') is not null") == "t");
    cluster.pause();
    assert_eq!(cluster.view().unwrap()["pause"], true);
    cluster.resume();
    let name = replica.name.clone();
    cluster.switchover(&name);
    assert_eq!(cluster.sql(cluster.node(&name).port, "select pg_is_in_recovery()"), "f");
}
