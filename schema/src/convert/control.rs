//! Objects of the replicated state, commands, and changes.

use std::collections::{BTreeMap, VecDeque};

use capnp::message::Builder;
use capnp::struct_list;
use weir_core::ids::{
    DeviceName, Digest, EndpointName, Epoch, LogIndex, MemberId, MemberName, ModelRef, NodeName, ReplicaId, RequestId,
    Version,
};
use weir_core::replicated::{
    Applied, Assignment, Change, Command, Declared, Device, Done, EngineKind, Entry, Grant, KeptProfile, Member, Model,
    Moves, Node, Plan, Refusal, ReplicaRange, Role, State,
};
use weir_core::shapes::{Padding, Shapes};
use weir_core::units::Bytes;

use super::endpoint::{read_endpoint, read_label, write_endpoint, write_label};
use super::predict::halves;
use super::report::{read_points, write_points};
use super::tensor::{read_signature, write_signature};
use super::{BadMessage, count, framed};
use crate::control_capnp as wire;

/// Writes 128 bits.
pub fn write_u128(mut b: wire::u128::Builder<'_>, number: u128) {
    let (high, low) = halves(number);
    b.set_high(high);
    b.set_low(low);
}

/// Reads 128 bits.
pub fn read_u128(r: wire::u128::Reader<'_>) -> u128 {
    u128::from(r.get_high()) << 64 | u128::from(r.get_low())
}

/// A digest from its 32 bytes.
pub fn read_digest(data: &[u8]) -> Result<Digest, BadMessage> {
    Ok(Digest(data.try_into().map_err(|_| BadMessage::new("a digest has 32 bytes"))?))
}

pub(super) fn none_if_empty(text: capnp::text::Reader<'_>) -> Result<Option<String>, BadMessage> {
    let text = text.to_str()?;
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

pub(super) fn text(reader: capnp::text::Reader<'_>) -> Result<String, BadMessage> {
    Ok(reader.to_str()?.to_owned())
}

pub(super) fn model_ref(reader: capnp::text::Reader<'_>) -> Result<ModelRef, BadMessage> {
    Ok(ModelRef::parse(reader.to_str()?)?)
}

/// Writes a model.
pub fn write_model(mut b: wire::model::Builder<'_>, model: &Model) {
    b.set_reference(model.reference.to_string());
    b.set_digest(&model.digest.0);
    b.set_size(model.size.0);
    b.set_engine(match model.engine {
        EngineKind::Onnx => wire::Engine::Onnx,
        EngineKind::Synthetic => wire::Engine::Synthetic,
        EngineKind::Kernel => wire::Engine::Kernel,
    });
    write_signature(b.reborrow().init_signature(), &model.signature);
    b.set_max_batch(model.max_batch.unwrap_or(0));
    b.set_replicas_min(model.replicas.min);
    b.set_replicas_max(model.replicas.max);
    b.set_quarantined(model.quarantined.as_deref().unwrap_or(""));
    let mut sizes = b.reborrow().init_batch_sizes(count(model.shapes.batch_sizes.len()));
    for (i, size) in model.shapes.batch_sizes.iter().enumerate() {
        sizes.set(i as u32, *size);
    }
    if let Some(pad) = &model.shapes.pad {
        write_padding(b.init_pad(), pad);
    }
}

fn write_padding(mut b: wire::padding::Builder<'_>, pad: &Padding) {
    b.set_mask(&pad.mask);
    b.set_dimension(pad.dimension);
    let mut inputs = b.reborrow().init_inputs(count(pad.inputs.len()));
    for (i, (name, value)) in pad.inputs.iter().enumerate() {
        let mut b = inputs.reborrow().get(i as u32);
        b.set_name(name);
        b.set_value(*value);
    }
    let mut buckets = b.reborrow().init_buckets(count(pad.buckets.len()));
    for (i, bucket) in pad.buckets.iter().enumerate() {
        buckets.set(i as u32, *bucket);
    }
    let mut outputs = b.init_outputs(count(pad.outputs.len()));
    for (i, output) in pad.outputs.iter().enumerate() {
        outputs.set(i as u32, output);
    }
}

fn read_padding(r: wire::padding::Reader<'_>) -> Result<Padding, BadMessage> {
    let input = |r: wire::padded_input::Reader<'_>| Ok((r.get_name()?.to_string()?, r.get_value()));
    let output = |name: capnp::Result<capnp::text::Reader<'_>>| Ok(name?.to_string()?);
    Ok(Padding {
        mask: r.get_mask()?.to_string()?,
        inputs: r.get_inputs()?.iter().map(input).collect::<Result<_, BadMessage>>()?,
        dimension: r.get_dimension(),
        buckets: r.get_buckets()?.iter().collect(),
        outputs: r.get_outputs()?.iter().map(output).collect::<Result<_, BadMessage>>()?,
    })
}

/// Reads a model.
pub fn read_model(r: wire::model::Reader<'_>) -> Result<Model, BadMessage> {
    Ok(Model {
        reference: model_ref(r.get_reference()?)?,
        digest: read_digest(r.get_digest()?)?,
        size: Bytes(r.get_size()),
        engine: match r.get_engine()? {
            wire::Engine::Onnx => EngineKind::Onnx,
            wire::Engine::Synthetic => EngineKind::Synthetic,
            wire::Engine::Kernel => EngineKind::Kernel,
        },
        signature: read_signature(r.get_signature()?)?,
        max_batch: Some(r.get_max_batch()).filter(|max| *max > 0),
        shapes: Shapes {
            batch_sizes: r.get_batch_sizes()?.iter().collect(),
            pad: if r.has_pad() { Some(read_padding(r.get_pad()?)?) } else { None },
        },
        replicas: ReplicaRange { min: r.get_replicas_min(), max: r.get_replicas_max() },
        quarantined: none_if_empty(r.get_quarantined()?)?,
    })
}

/// Writes a node.
pub fn write_node(mut b: wire::node::Builder<'_>, node: &Node) {
    b.set_name(node.name.as_str());
    b.set_address(&node.address);
    b.set_memory(node.memory.0);
    b.set_draining(node.draining);
    let mut devices = b.init_devices(count(node.devices.len()));
    for (i, device) in node.devices.iter().enumerate() {
        let mut b = devices.reborrow().get(i as u32);
        b.set_name(device.name.as_str());
        b.set_kind(&device.kind);
        b.set_slots(device.slots);
        b.set_hardware(&device.hardware);
    }
}

/// Reads a node.
pub fn read_node(r: wire::node::Reader<'_>) -> Result<Node, BadMessage> {
    let device = |r: wire::device::Reader<'_>| -> Result<Device, BadMessage> {
        Ok(Device {
            name: DeviceName::parse(r.get_name()?.to_str()?)?,
            kind: text(r.get_kind()?)?,
            slots: r.get_slots(),
            hardware: text(r.get_hardware()?)?,
        })
    };
    Ok(Node {
        name: NodeName::parse(r.get_name()?.to_str()?)?,
        address: text(r.get_address()?)?,
        devices: r.get_devices()?.iter().map(device).collect::<Result<_, _>>()?,
        memory: Bytes(r.get_memory()),
        draining: r.get_draining(),
    })
}

fn write_assignments(
    mut list: struct_list::Builder<'_, wire::assignment::Owned>,
    assignments: &BTreeMap<ReplicaId, Assignment>,
) {
    for (i, (id, assignment)) in assignments.iter().enumerate() {
        let mut b = list.reborrow().get(i as u32);
        b.set_replica(id.0);
        b.set_model(assignment.model.to_string());
        b.set_node(assignment.node.as_str());
        b.set_device(assignment.device.as_str());
    }
}

fn read_assignments(
    list: struct_list::Reader<'_, wire::assignment::Owned>,
) -> Result<BTreeMap<ReplicaId, Assignment>, BadMessage> {
    let one = |r: wire::assignment::Reader<'_>| -> Result<_, BadMessage> {
        let assignment = Assignment {
            model: model_ref(r.get_model()?)?,
            node: NodeName::parse(r.get_node()?.to_str()?)?,
            device: DeviceName::parse(r.get_device()?.to_str()?)?,
        };
        Ok((ReplicaId(r.get_replica()), assignment))
    };
    list.iter().map(one).collect()
}

/// Writes a plan.
pub fn write_plan(mut b: wire::plan::Builder<'_>, plan: &Plan) {
    b.set_epoch(plan.epoch.0);
    write_assignments(b.init_assignments(count(plan.assignments.len())), &plan.assignments);
}

/// Reads a plan.
pub fn read_plan(r: wire::plan::Reader<'_>) -> Result<Plan, BadMessage> {
    Ok(Plan { epoch: Epoch(r.get_epoch()), assignments: read_assignments(r.get_assignments()?)? })
}

fn write_moves(mut b: wire::moves::Builder<'_>, epoch: Epoch, moves: &Moves) {
    b.set_epoch(epoch.0);
    let mut gone = b.reborrow().init_gone(count(moves.gone.len()));
    moves.gone.iter().enumerate().for_each(|(i, id)| gone.set(i as u32, id.0));
    write_assignments(b.init_placed(count(moves.placed.len())), &moves.placed);
}

fn read_moves(r: wire::moves::Reader<'_>) -> Result<(Epoch, Moves), BadMessage> {
    let gone = r.get_gone()?.iter().map(ReplicaId).collect();
    Ok((Epoch(r.get_epoch()), Moves { anew: false, gone, placed: read_assignments(r.get_placed()?)? }))
}

/// Writes a grant; the hash of its token only where `secrets` are for the reader.
pub fn write_grant(mut b: wire::grant::Builder<'_>, grant: &Grant, secrets: bool) {
    b.set_id(&grant.id);
    b.set_token_hash(if secrets { &grant.token_hash } else { &[0; 32] });
    b.set_expires(grant.expires.unwrap_or(0));
    let mut role = b.init_role();
    match &grant.role {
        Role::Predict(endpoints) => {
            let mut list = role.init_predict(count(endpoints.len()));
            for (i, name) in endpoints.iter().enumerate() {
                list.set(i as u32, name.as_str());
            }
        }
        Role::Operator => role.set_operator(()),
        Role::Admin => role.set_admin(()),
        Role::Member => role.set_member(()),
    }
}

/// Reads a grant.
pub fn read_grant(r: wire::grant::Reader<'_>) -> Result<Grant, BadMessage> {
    use wire::grant::role::Which;
    let role = match r.get_role().which()? {
        Which::Predict(list) => {
            let names = list?.iter().map(|name| Ok::<_, BadMessage>(EndpointName::parse(name?.to_str()?)?));
            Role::Predict(names.collect::<Result<_, _>>()?)
        }
        Which::Operator(()) => Role::Operator,
        Which::Admin(()) => Role::Admin,
        Which::Member(()) => Role::Member,
    };
    let expires = Some(r.get_expires()).filter(|at| *at > 0);
    Ok(Grant { id: text(r.get_id()?)?, token_hash: read_digest(r.get_token_hash()?)?.0, role, expires })
}

/// Writes a member.
pub fn write_member(mut b: wire::member::Builder<'_>, member: &Member) {
    b.set_id(member.id.0);
    b.set_name(member.name.as_str());
    b.set_address(&member.address);
    b.set_learner(member.learner);
}

/// Reads a member.
pub fn read_member(r: wire::member::Reader<'_>) -> Result<Member, BadMessage> {
    Ok(Member {
        id: MemberId(r.get_id()),
        name: MemberName::parse(r.get_name()?.to_str()?)?,
        address: text(r.get_address()?)?,
        learner: r.get_learner(),
    })
}

/// Writes a profile that is kept.
pub fn write_kept_profile(mut b: wire::kept_profile::Builder<'_>, profile: &KeptProfile) {
    b.set_digest(&profile.digest.0);
    b.set_hardware(&profile.hardware);
    b.set_by(profile.by.as_str());
    write_points(b.init_points(count(profile.points.len())), &profile.points);
}

/// Reads a profile that is kept.
pub fn read_kept_profile(r: wire::kept_profile::Reader<'_>) -> Result<KeptProfile, BadMessage> {
    Ok(KeptProfile {
        digest: read_digest(r.get_digest()?)?,
        hardware: text(r.get_hardware()?)?,
        points: read_points(r.get_points()?)?,
        by: NodeName::parse(r.get_by()?.to_str()?)?,
    })
}

/// Writes each item of a list with `write`.
fn write_list<'a, T, O>(
    mut list: struct_list::Builder<'a, O>,
    items: impl Iterator<Item = T>,
    write: impl Fn(O::Builder<'_>, T),
) where
    O: capnp::traits::OwnedStruct,
{
    for (i, item) in items.enumerate() {
        write(list.reborrow().get(i as u32), item);
    }
}

/// Writes a command.
pub fn write_command(mut b: wire::command::Builder<'_>, command: &Command) {
    match command {
        Command::Found { cluster, grants } => {
            let mut b = b.init_found();
            b.set_cluster(cluster);
            write_list(b.init_grants(count(grants.len())), grants.iter(), |b, grant| write_grant(b, grant, true));
        }
        Command::Apply { models, endpoints, if_index } => {
            let mut b = b.init_apply();
            b.set_if_index(if_index.map_or(0, |index| index.0));
            write_list(b.reborrow().init_models(count(models.len())), models.iter(), write_model);
            write_list(b.init_endpoints(count(endpoints.len())), endpoints.iter(), write_endpoint);
        }
        Command::DeleteEndpoint(name) => b.set_delete_endpoint(name.as_str()),
        Command::DeleteModel(model) => b.set_delete_model(model.to_string()),
        Command::Label { name, version } => write_labelling(b.init_label(), name, version.as_ref()),
        Command::LabelMoves { name, version } => write_labelling(b.init_label_moves(), name, Some(version)),
        Command::LabelLeaves { name, version } => write_labelling(b.init_label_leaves(), name, Some(version)),
        Command::LabelBack { name, version, because } => {
            let mut b = b.init_label_back();
            b.set_because(because);
            write_labelling(b, name, Some(version));
        }
        Command::NodeJoin(node) => write_node(b.init_node_join(), node),
        Command::NodeDrain { node, draining } => {
            let mut b = b.init_node_drain();
            b.set_drain_node(node.as_str());
            b.set_draining(*draining);
        }
        Command::NodeRemove(name) => b.set_node_remove(name.as_str()),
        Command::MovePlan { replaces, moves } if moves.anew => {
            let mut b = b.init_set_plan();
            b.set_replaces(replaces.0);
            write_assignments(b.init_assignments(count(moves.placed.len())), &moves.placed);
        }
        Command::MovePlan { replaces, moves } => write_moves(b.init_move_plan(), *replaces, moves),
        Command::Quarantine { model, because } => {
            let mut b = b.init_quarantine();
            b.set_model(model.to_string());
            b.set_because(because.as_deref().unwrap_or(""));
        }
        Command::GrantAdd(grant) => write_grant(b.init_grant_add(), grant, true),
        Command::GrantRevoke(id) => b.set_grant_revoke(id),
        Command::MemberSet { id, member } => {
            let mut b = b.init_member_set();
            b.set_gone(member.is_none());
            match member {
                Some(member) => write_member(b.init_member(), member),
                None => b.init_member().set_id(id.0),
            }
        }
        Command::KeepProfile(profile) => write_kept_profile(b.init_keep_profile(), profile),
        Command::Dial { pool, price } => write_dial(b.init_dial(), pool, *price),
    }
}

/// Reads a command.
pub fn read_command(r: wire::command::Reader<'_>) -> Result<Command, BadMessage> {
    use wire::command::Which;
    Ok(match r.which()? {
        Which::Found(r) => Command::Found {
            cluster: text(r.get_cluster()?)?,
            grants: r.get_grants()?.iter().map(read_grant).collect::<Result<_, _>>()?,
        },
        Which::Apply(r) => Command::Apply {
            models: r.get_models()?.iter().map(read_model).collect::<Result<_, _>>()?,
            endpoints: r.get_endpoints()?.iter().map(read_endpoint).collect::<Result<_, _>>()?,
            if_index: Some(LogIndex(r.get_if_index())).filter(|index| index.0 > 0),
        },
        Which::DeleteEndpoint(name) => Command::DeleteEndpoint(EndpointName::parse(name?.to_str()?)?),
        Which::DeleteModel(model) => Command::DeleteModel(model_ref(model?)?),
        Which::Label(r) => {
            let (name, version) = read_labelling(r?)?;
            Command::Label { name, version }
        }
        Which::LabelMoves(r) => {
            let (name, version) = read_labelling(r?)?;
            Command::LabelMoves { name, version: version.ok_or_else(no_version)? }
        }
        Which::LabelLeaves(r) => {
            let (name, version) = read_labelling(r?)?;
            Command::LabelLeaves { name, version: version.ok_or_else(no_version)? }
        }
        Which::LabelBack(r) => {
            let r = r?;
            let (name, version) = read_labelling(r)?;
            let version = version.ok_or_else(no_version)?;
            Command::LabelBack { name, version, because: text(r.get_because()?)? }
        }
        Which::NodeJoin(r) => Command::NodeJoin(read_node(r?)?),
        Which::NodeDrain(r) => {
            Command::NodeDrain { node: NodeName::parse(r.get_drain_node()?.to_str()?)?, draining: r.get_draining() }
        }
        Which::NodeRemove(name) => Command::NodeRemove(NodeName::parse(name?.to_str()?)?),
        Which::SetPlan(r) => Command::MovePlan {
            replaces: Epoch(r.get_replaces()),
            moves: Moves::anew(read_assignments(r.get_assignments()?)?),
        },
        Which::MovePlan(r) => {
            let (replaces, moves) = read_moves(r?)?;
            Command::MovePlan { replaces, moves }
        }
        Which::Quarantine(r) => {
            Command::Quarantine { model: model_ref(r.get_model()?)?, because: none_if_empty(r.get_because()?)? }
        }
        Which::GrantAdd(r) => Command::GrantAdd(read_grant(r?)?),
        Which::GrantRevoke(id) => Command::GrantRevoke(text(id?)?),
        Which::MemberSet(r) => {
            let member = r.get_member()?;
            let id = MemberId(member.get_id());
            Command::MemberSet { id, member: if r.get_gone() { None } else { Some(read_member(member)?) } }
        }
        Which::KeepProfile(r) => Command::KeepProfile(read_kept_profile(r?)?),
        Which::Dial(r) => {
            let (pool, price) = read_dial(r?)?;
            Command::Dial { pool, price }
        }
    })
}

/// A log entry's payload as it is kept and sent.
pub fn entry_to_bytes(entry: &Entry) -> Vec<u8> {
    let mut message = Builder::new_default();
    let mut b = message.init_root::<wire::entry::Builder<'_>>();
    write_u128(b.reborrow().init_request(), entry.request.0);
    b.set_by(&entry.by);
    write_command(b.init_command(), &entry.command);
    capnp::serialize::write_message_to_words(&message)
}

/// A log entry's payload from what was kept.
pub fn entry_from_bytes(bytes: &[u8]) -> Result<Entry, BadMessage> {
    let message = framed::<wire::entry::Owned>(bytes)?;
    let r = message.get()?;
    Ok(Entry {
        request: RequestId(read_u128(r.get_request()?)),
        by: text(r.get_by()?)?,
        command: read_command(r.get_command()?)?,
    })
}

/// Writes the result of a request.
pub fn write_applied(b: wire::applied::Builder<'_>, applied: &Applied) {
    match applied {
        Ok(done) => {
            let mut b = b.init_done();
            b.set_index(done.index.0);
            let mut lines = b.init_lines(count(done.lines.len()));
            for (i, line) in done.lines.iter().enumerate() {
                lines.set(i as u32, line);
            }
        }
        Err(refusal) => {
            let mut b = b.init_refused();
            let (kind, what) = match refusal {
                Refusal::NotFound { what } => (wire::refusal::Kind::NotFound, what),
                Refusal::Conflict { what } => (wire::refusal::Kind::Conflict, what),
                Refusal::Invalid { what } => (wire::refusal::Kind::Invalid, what),
            };
            b.set_kind(kind);
            b.set_text(what);
        }
    }
}

/// Reads the result of a request.
pub fn read_applied(r: wire::applied::Reader<'_>) -> Result<Applied, BadMessage> {
    use wire::applied::Which;
    Ok(match r.which()? {
        Which::Done(r) => {
            let lines = r.get_lines()?.iter().map(|line| text(line?)).collect::<Result<_, BadMessage>>()?;
            Ok(Done { index: LogIndex(r.get_index()), lines })
        }
        Which::Refused(r) => {
            let r = r?;
            let what = text(r.get_text()?)?;
            Err(match r.get_kind()? {
                wire::refusal::Kind::NotFound => Refusal::NotFound { what },
                wire::refusal::Kind::Conflict => Refusal::Conflict { what },
                wire::refusal::Kind::Invalid => Refusal::Invalid { what },
            })
        }
    })
}

fn write_dial(mut b: wire::dial::Builder<'_>, pool: &str, price: Option<f64>) {
    b.set_pool(pool);
    match price {
        None => b.init_held().set_auto(()),
        Some(price) => b.init_held().set_price(price),
    }
}

fn read_dial(r: wire::dial::Reader<'_>) -> Result<(String, Option<f64>), BadMessage> {
    let price = match r.get_held().which()? {
        wire::dial::held::Auto(()) => None,
        wire::dial::held::Price(price) => Some(price),
    };
    Ok((text(r.get_pool()?)?, price))
}

fn write_labelling(mut b: wire::labelling::Builder<'_>, name: &ModelRef, version: Option<&Version>) {
    b.set_name(name.to_string());
    b.set_version(version.map_or("", Version::as_str));
}

fn read_labelling(r: wire::labelling::Reader<'_>) -> Result<(ModelRef, Option<Version>), BadMessage> {
    let version = none_if_empty(r.get_version()?)?.map(|version| Version::parse(&version)).transpose()?;
    Ok((model_ref(r.get_name()?)?, version))
}

fn no_version() -> BadMessage {
    BadMessage::new("a label's step names a version")
}

/// Writes a change, with token hashes only where `secrets` are for the reader.
pub fn write_change(mut b: wire::change::Builder<'_>, index: LogIndex, change: &Change, secrets: bool) {
    b.set_index(index.0);
    match change {
        Change::Cluster(name) => b.set_cluster(name),
        Change::Model(model) => write_model(b.init_model(), model),
        Change::ModelGone(reference) => b.set_model_gone(reference.to_string()),
        Change::Endpoint(endpoint) => write_endpoint(b.init_endpoint(), endpoint),
        Change::EndpointGone(name) => b.set_endpoint_gone(name.as_str()),
        Change::Node(node) => write_node(b.init_node(), node),
        Change::NodeGone(name) => b.set_node_gone(name.as_str()),
        Change::Plan(epoch, moves) if moves.anew => {
            write_plan(b.init_plan(), &Plan { epoch: *epoch, assignments: moves.placed.clone() });
        }
        Change::Plan(epoch, moves) => write_moves(b.init_moved(), *epoch, moves),
        Change::Grant(grant) => write_grant(b.init_grant(), grant, secrets),
        Change::GrantGone(id) => b.set_grant_gone(id),
        Change::Member(member) => write_member(b.init_member(), member),
        Change::MemberGone(id) => b.set_member_gone(id.0),
        Change::Profile(profile) => write_kept_profile(b.init_profile(), profile),
        Change::ProfilesGone(digest) => b.set_profiles_gone(&digest.0),
        Change::Dial(pool, price) => write_dial(b.init_dial(), pool, *price),
        Change::Label(label) => write_label(b.init_label(), label),
        Change::LabelGone(name) => b.set_label_gone(name.to_string()),
    }
}

/// Reads a change with the index of its entry; `None` for one that says only how far the log has come.
pub fn read_change(r: wire::change::Reader<'_>) -> Result<(LogIndex, Option<Change>), BadMessage> {
    use wire::change::Which;
    let change = match r.which()? {
        Which::Cluster(name) => Change::Cluster(text(name?)?),
        Which::Model(r) => Change::Model(read_model(r?)?),
        Which::ModelGone(name) => Change::ModelGone(model_ref(name?)?),
        Which::Endpoint(r) => Change::Endpoint(read_endpoint(r?)?),
        Which::EndpointGone(name) => Change::EndpointGone(EndpointName::parse(name?.to_str()?)?),
        Which::Node(r) => Change::Node(read_node(r?)?),
        Which::NodeGone(name) => Change::NodeGone(NodeName::parse(name?.to_str()?)?),
        Which::Plan(r) => {
            let plan = read_plan(r?)?;
            Change::Plan(plan.epoch, Moves::anew(plan.assignments))
        }
        Which::Moved(r) => {
            let (epoch, moves) = read_moves(r?)?;
            Change::Plan(epoch, moves)
        }
        Which::Grant(r) => Change::Grant(read_grant(r?)?),
        Which::GrantGone(id) => Change::GrantGone(text(id?)?),
        Which::Member(r) => Change::Member(read_member(r?)?),
        Which::MemberGone(id) => Change::MemberGone(MemberId(id)),
        Which::Profile(r) => Change::Profile(read_kept_profile(r?)?),
        Which::ProfilesGone(digest) => Change::ProfilesGone(read_digest(digest?)?),
        Which::Dial(r) => {
            let (pool, price) = read_dial(r?)?;
            Change::Dial(pool, price)
        }
        Which::Label(r) => Change::Label(read_label(r?)?),
        Which::LabelGone(name) => Change::LabelGone(model_ref(name?)?),
        Which::Applied(()) => return Ok((LogIndex(r.get_index()), None)),
    };
    Ok((LogIndex(r.get_index()), Some(change)))
}

/// Writes the state; token hashes and remembered requests only where `secrets` are for the reader.
pub fn write_state(mut b: wire::state::Builder<'_>, state: &State, secrets: bool) {
    b.set_applied(state.applied.0);
    b.set_cluster(&state.cluster);
    b.set_next_replica(state.next_replica.0);
    b.set_next_member(state.next_member.0);
    write_list(b.reborrow().init_models(count(state.models.len())), state.models.values(), write_model);
    write_list(b.reborrow().init_endpoints(count(state.endpoints.len())), state.endpoints.values(), write_endpoint);
    write_list(b.reborrow().init_nodes(count(state.nodes.len())), state.nodes.values(), write_node);
    write_plan(b.reborrow().init_plan(), &state.plan);
    let grants = b.reborrow().init_grants(count(state.grants.len()));
    write_list(grants, state.grants.values(), |b, grant| write_grant(b, grant, secrets));
    write_list(b.reborrow().init_members(count(state.members.len())), state.members.values(), write_member);
    let profiles = b.reborrow().init_profiles(count(state.profiles.len()));
    write_list(profiles, state.profiles.values(), write_kept_profile);
    let dials = b.reborrow().init_dials(count(state.dials.len()));
    write_list(dials, state.dials.iter(), |b, (pool, price)| write_dial(b, pool, Some(*price)));
    write_list(b.reborrow().init_labels(count(state.labels.len())), state.labels.values(), write_label);
    if secrets {
        let requests = b.init_requests(count(state.requests.len()));
        write_list(
            requests,
            state.requests.iter(),
            |mut b: wire::state::remembered::Builder<'_>, (index, request, result)| {
                b.set_index(index.0);
                write_u128(b.reborrow().init_request(), request.0);
                write_applied(b.init_result(), result);
            },
        );
    }
}

/// Reads the state.
pub fn read_state(r: wire::state::Reader<'_>) -> Result<State, BadMessage> {
    let models = r.get_models()?.iter().map(|r| read_model(r).map(|m| (m.reference.clone(), m)));
    let endpoints = r.get_endpoints()?.iter().map(|r| read_endpoint(r).map(|e| (e.name.clone(), e)));
    let nodes = r.get_nodes()?.iter().map(|r| read_node(r).map(|n| (n.name.clone(), n)));
    let grants = r.get_grants()?.iter().map(|r| read_grant(r).map(|g| (g.id.clone(), g)));
    let members = r.get_members()?.iter().map(|r| read_member(r).map(|m| (m.id, m)));
    let profiles = r.get_profiles()?.iter().map(|r| read_kept_profile(r).map(|p| ((p.digest, p.hardware.clone()), p)));
    let dials = r.get_dials()?.iter().map(|r| {
        let (pool, price) = read_dial(r)?;
        Ok((pool, price.ok_or_else(|| BadMessage::new("a dial of the state holds a price"))?))
    });
    let labels = r.get_labels()?.iter().map(|r| read_label(r).map(|label| (label.name.clone(), label)));
    let requests = r.get_requests()?.iter().map(|r| -> Result<_, BadMessage> {
        Ok((LogIndex(r.get_index()), RequestId(read_u128(r.get_request()?)), read_applied(r.get_result()?)?))
    });
    Ok(State {
        applied: LogIndex(r.get_applied()),
        cluster: text(r.get_cluster()?)?,
        models: models.collect::<Result<_, _>>()?,
        endpoints: endpoints.collect::<Result<_, _>>()?,
        nodes: nodes.collect::<Result<_, _>>()?,
        plan: read_plan(r.get_plan()?)?,
        grants: grants.collect::<Result<_, _>>()?,
        members: members.collect::<Result<_, _>>()?,
        profiles: profiles.collect::<Result<_, _>>()?,
        dials: dials.collect::<Result<_, BadMessage>>()?,
        labels: labels.collect::<Result<_, _>>()?,
        declared: Declared::by(LogIndex(r.get_applied())),
        next_replica: ReplicaId(r.get_next_replica()),
        next_member: MemberId(r.get_next_member()),
        requests: requests.collect::<Result<VecDeque<_>, _>>()?,
    })
}

/// The state as a snapshot keeps it.
pub fn state_to_bytes(state: &State) -> Vec<u8> {
    let mut message = Builder::new_default();
    write_state(message.init_root(), state, true);
    capnp::serialize::write_message_to_words(&message)
}

/// The state from a snapshot.
pub fn state_from_bytes(bytes: &[u8]) -> Result<State, BadMessage> {
    read_state(framed::<wire::state::Owned>(bytes)?.get()?)
}
