//! What nodes report to the leader.

use capnp::struct_list;
use weir_core::history::ByStage;
use weir_core::ids::{DeviceName, EndpointName, Epoch, NodeName, ReplicaId};
use weir_core::paging::{Evicted, MemoryNow, Paged, Residence};
use weir_core::placement::{DeviceLoad, EndpointLoad, NodeReport, ReplicaProfile, ReplicaReport, ReplicaState};
use weir_core::rollout::Score;
use weir_core::scheduler::{Batches, Closed};
use weir_core::units::{Bytes, ServiceTime};

use super::asked::{read_asked, write_asked};
use super::control::{model_ref, read_u128, write_u128};
use super::predict::{span_from_us, span_to_us};
use super::{BadMessage, count};
use crate::control_capnp::{self as wire, memory_now, node_report, paged, profile};

/// Writes a report, apart from the routing that its sender knows.
pub fn write_report(mut b: node_report::Builder<'_>, report: &NodeReport) {
    b.set_node(report.node.as_str());
    write_u128(b.reborrow().init_incarnation(), report.incarnation);
    b.set_epoch(report.epoch.0);
    b.set_up_us(span_to_us(report.up));
    b.set_draining(report.draining);
    let mut replicas = b.reborrow().init_replicas(count(report.replicas.len()));
    for (i, (id, replica)) in report.replicas.iter().enumerate() {
        let mut b = replicas.reborrow().get(i as u32);
        b.set_replica(id.0);
        b.set_deaths(replica.deaths);
        b.set_last_death(&replica.last_death);
        b.set_batch_rows(replica.batches.rows());
        let mut closed = b.reborrow().init_batches_closed(Closed::ALL.len() as u32);
        for (i, (_, batches)) in replica.batches.by_reason().enumerate() {
            closed.set(i as u32, batches);
        }
        if let Some(paged) = &replica.paged {
            write_paged(b.reborrow().init_paged(), paged);
        }
        let mut state = b.init_state();
        match &replica.state {
            ReplicaState::Loading => state.set_loading(()),
            ReplicaState::Ready(profile) => write_profile(state.init_ready(), profile),
            ReplicaState::Failed(why) => state.set_failed(why),
        }
    }
    let mut devices = b.reborrow().init_devices(count(report.devices.len()));
    for (i, load) in report.devices.iter().enumerate() {
        let mut b = devices.reborrow().get(i as u32);
        b.set_device(load.device.as_str());
        b.set_busy_us(load.busy.as_micros());
        b.set_queued(load.queued);
        b.set_backlog_us(load.backlog.as_micros());
    }
    b.set_curves(&write_asked(&report.asked));
    let mut wanted = b.reborrow().init_wanted(count(report.wanted.len()));
    for (i, (model, rows)) in report.wanted.iter().enumerate() {
        let mut b = wanted.reborrow().get(i as u32);
        b.set_model(model.to_string());
        b.set_rows(*rows);
    }
    write_memory(b.reborrow().init_memory(), &report.memory);
    let mut endpoints = b.init_endpoints(count(report.endpoints.len()));
    for (i, load) in report.endpoints.iter().enumerate() {
        let mut b = endpoints.reborrow().get(i as u32);
        b.set_endpoint(load.endpoint.as_str());
        b.set_arrived(load.arrived);
        b.set_answered(load.answered);
        b.set_rejected(load.rejected);
        b.set_expired(load.expired);
        b.set_failed(load.failed);
        b.set_degraded(load.degraded);
        b.set_last_error(&load.last_error);
        let mut versions = b.reborrow().init_versions(count(load.versions.len()));
        for (i, (model, score)) in load.versions.iter().enumerate() {
            let mut b = versions.reborrow().get(i as u32);
            b.set_model(model.to_string());
            b.set_rows(score.rows);
            b.set_in_time(score.in_time);
        }
        let stages = count(load.by_stage.iter().len());
        let mut answers = b.reborrow().init_stage_answers(stages);
        load.by_stage.iter().enumerate().for_each(|(i, (_, answered))| answers.set(i as u32, answered));
        let mut names = b.init_stage_names(stages);
        load.by_stage.iter().enumerate().for_each(|(i, (stage, _))| names.set(i as u32, stage));
    }
}

/// Reads a report.
pub fn read_report(r: node_report::Reader<'_>) -> Result<NodeReport, BadMessage> {
    let replica = |r: wire::replica_report::Reader<'_>| -> Result<_, BadMessage> {
        use wire::replica_report::state::Which;
        let state = match r.get_state().which()? {
            Which::Loading(()) => ReplicaState::Loading,
            Which::Ready(profile) => ReplicaState::Ready(read_profile(profile?)?),
            Which::Failed(why) => ReplicaState::Failed(why?.to_str()?.to_owned()),
        };
        let report = ReplicaReport {
            state,
            deaths: r.get_deaths(),
            last_death: r.get_last_death()?.to_str()?.to_owned(),
            batches: Batches::of(r.get_batches_closed()?.iter(), r.get_batch_rows()),
            paged: if r.has_paged() { Some(read_paged(r.get_paged()?)?) } else { None },
        };
        Ok((ReplicaId(r.get_replica()), report))
    };
    let device = |r: wire::device_load::Reader<'_>| -> Result<_, BadMessage> {
        Ok(DeviceLoad {
            device: DeviceName::parse(r.get_device()?.to_str()?)?,
            busy: span_from_us(r.get_busy_us())?.into(),
            queued: r.get_queued(),
            backlog: span_from_us(r.get_backlog_us())?.into(),
        })
    };
    let version = |r: wire::endpoint_load::version_load::Reader<'_>| -> Result<_, BadMessage> {
        Ok((model_ref(r.get_model()?)?, Score { rows: r.get_rows(), in_time: r.get_in_time() }))
    };
    let endpoint = |r: wire::endpoint_load::Reader<'_>| -> Result<_, BadMessage> {
        // What an older node counted by number alone is left out: the stages may have been others.
        let mut by_stage = ByStage::default();
        for (stage, answered) in r.get_stage_names()?.iter().zip(r.get_stage_answers()?) {
            by_stage.count(stage?.to_str()?, answered);
        }
        Ok(EndpointLoad {
            endpoint: EndpointName::parse(r.get_endpoint()?.to_str()?)?,
            arrived: r.get_arrived(),
            answered: r.get_answered(),
            rejected: r.get_rejected(),
            expired: r.get_expired(),
            failed: r.get_failed(),
            degraded: r.get_degraded(),
            last_error: r.get_last_error()?.to_str()?.to_owned(),
            by_stage,
            versions: r.get_versions()?.iter().map(version).collect::<Result<_, _>>()?,
        })
    };
    let wanted =
        |r: wire::model_rows::Reader<'_>| -> Result<_, BadMessage> { Ok((model_ref(r.get_model()?)?, r.get_rows())) };
    Ok(NodeReport {
        node: NodeName::parse(r.get_node()?.to_str()?)?,
        incarnation: read_u128(r.get_incarnation()?),
        epoch: Epoch(r.get_epoch()),
        replicas: r.get_replicas()?.iter().map(replica).collect::<Result<_, _>>()?,
        devices: r.get_devices()?.iter().map(device).collect::<Result<_, _>>()?,
        endpoints: r.get_endpoints()?.iter().map(endpoint).collect::<Result<_, _>>()?,
        up: span_from_us(r.get_up_us())?,
        draining: r.get_draining(),
        asked: read_asked(r.get_curves()?, r.get_asked()?)?,
        wanted: r.get_wanted()?.iter().map(wanted).collect::<Result<_, _>>()?,
        memory: read_memory(r.get_memory()?),
    })
}

fn write_paged(mut b: paged::Builder<'_>, paged: &Paged) {
    b.set_residence(match paged.residence {
        Residence::Resident => wire::Residence::Resident,
        Residence::Loading => wire::Residence::Loading,
        Residence::OnDemand => wire::Residence::OnDemand,
    });
    b.set_size(paged.size.0);
    b.set_reload_us(span_to_us(paged.reload));
    b.set_rate(paged.rate);
    b.set_cold(paged.cold);
    b.set_loads(paged.loads);
    b.set_evictions(paged.evictions);
    if let Some(evicted) = &paged.evicted {
        b.set_evicted_ago_us(span_to_us(evicted.ago));
        b.set_evicted_by(evicted.by.as_ref().map_or(String::new(), ToString::to_string));
    }
}

fn read_paged(r: paged::Reader<'_>) -> Result<Paged, BadMessage> {
    let by = r.get_evicted_by()?;
    let evicted = || -> Result<Evicted, BadMessage> {
        let by = if by.is_empty() { None } else { Some(model_ref(by)?) };
        Ok(Evicted { ago: span_from_us(r.get_evicted_ago_us())?, by })
    };
    Ok(Paged {
        residence: match r.get_residence()? {
            wire::Residence::Resident => Residence::Resident,
            wire::Residence::Loading => Residence::Loading,
            wire::Residence::OnDemand => Residence::OnDemand,
        },
        size: Bytes(r.get_size()),
        reload: span_from_us(r.get_reload_us())?,
        rate: r.get_rate(),
        cold: r.get_cold(),
        loads: r.get_loads(),
        evictions: r.get_evictions(),
        evicted: if r.get_evictions() > 0 { Some(evicted()?) } else { None },
    })
}

fn write_memory(mut b: memory_now::Builder<'_>, memory: &MemoryNow) {
    b.set_size(memory.size.0);
    b.set_taken(memory.taken.0);
    b.set_placed(memory.placed.0);
    b.set_reloading(memory.reloading);
    b.set_thrashes(memory.thrashes);
    b.set_thrashings(memory.thrashings);
}

fn read_memory(r: memory_now::Reader<'_>) -> MemoryNow {
    MemoryNow {
        size: Bytes(r.get_size()),
        taken: Bytes(r.get_taken()),
        placed: Bytes(r.get_placed()),
        reloading: r.get_reloading(),
        thrashes: r.get_thrashes(),
        thrashings: r.get_thrashings(),
    }
}

/// Writes a profile.
pub fn write_profile(mut b: profile::Builder<'_>, measured: &ReplicaProfile) {
    b.set_max_batch(measured.max_batch);
    b.set_unbatched(&measured.unbatched);
    b.set_memory(measured.memory.0);
    b.set_informed(measured.informed);
    write_points(b.init_points(count(measured.points.len())), &measured.points);
}

/// Writes latency by batch size.
pub fn write_points(mut b: struct_list::Builder<'_, profile::point::Owned>, points: &[(u32, ServiceTime)]) {
    for (i, (batch, time)) in points.iter().enumerate() {
        let mut b = b.reborrow().get(i as u32);
        b.set_batch(*batch);
        b.set_us(time.as_nanos() as f64 / 1e3);
    }
}

/// Reads latency by batch size: at least one point, ascending sizes from 1.
pub fn read_points(r: struct_list::Reader<'_, profile::point::Owned>) -> Result<Vec<(u32, ServiceTime)>, BadMessage> {
    let points: Vec<(u32, ServiceTime)> =
        r.iter().map(|p| (p.get_batch(), ServiceTime::from_nanos((p.get_us() * 1e3).round() as u64))).collect();
    let ascending = points.windows(2).all(|pair| pair[0].0 < pair[1].0);
    if points.first().is_none_or(|(batch, _)| *batch == 0) || !ascending {
        return Err(BadMessage::new("a profile needs points at ascending batch sizes from 1"));
    }
    Ok(points)
}

/// Reads a profile: at least one point, ascending sizes from 1.
pub fn read_profile(r: profile::Reader<'_>) -> Result<ReplicaProfile, BadMessage> {
    if r.get_max_batch() == 0 {
        return Err(BadMessage::new("a profile needs a largest batch from 1"));
    }
    Ok(ReplicaProfile {
        points: read_points(r.get_points()?)?,
        max_batch: r.get_max_batch(),
        unbatched: r.get_unbatched()?.to_str()?.to_owned(),
        memory: Bytes(r.get_memory()),
        informed: r.get_informed(),
    })
}
