//! Who gets which object at a node: clients a predictor bound to their endpoints, other nodes the stages, operators what the node
//! knows of itself.

use std::rc::Rc;
use std::sync::Arc;

use weir_core::ids::EndpointName;
use weir_core::replicated::Role;
use weir_host::login::{Authority, Caller, NO_SUCH_TOKEN, purpose_word, same_hash};
use weir_schema::convert::predict::{span_to_us, write_statistics};
use weir_schema::convert::tensor::write_specs;
use weir_schema::predict_capnp::{Purpose, granted, predictor};

use crate::home::Home;
use crate::operators::OperatorObject;
use crate::stages::StagesObject;
use crate::table::{Served, Table};

/// Lets callers in by the grants of the table.
pub struct Door(pub Rc<Home>);

impl Authority for Door {
    fn admit(&self, caller: &Caller, mut granted: granted::Builder<'_>) -> Result<(), String> {
        let table = self.0.shared.table.load();
        if table.grants.is_empty() {
            return Err("this node has not joined its cluster yet; ask again".into());
        }
        let grant = table
            .grants
            .values()
            .find(|grant| same_hash(&grant.token_hash, &caller.token_hash))
            .ok_or(NO_SUCH_TOKEN)?;
        granted.set_server(self.0.shared.name.as_str());
        granted.set_grant(&grant.id);
        let mut role = granted.init_role();
        match (caller.purpose, &grant.role) {
            (Purpose::Predict, _) => {
                let predictor = PredictorObject { home: Rc::clone(&self.0), grant: grant.id.clone() };
                role.set_predictor(capnp_rpc::new_client(predictor));
            }
            (Purpose::Member, Role::Member) => {
                role.set_stages(capnp_rpc::new_client(StagesObject { shared: Arc::clone(&self.0.shared) }));
            }
            (Purpose::Operate, Role::Operator | Role::Admin) => {
                role.set_node_operator(capnp_rpc::new_client(OperatorObject { shared: Arc::clone(&self.0.shared) }));
            }
            (purpose, _) => return Err(format!("a node does not let this token's bearer {}", purpose_word(purpose))),
        }
        Ok(())
    }
}

struct PredictorObject {
    home: Rc<Home>,
    grant: String,
}

/// Whether a grant, as it is now, covers an endpoint. One that was revoked covers nothing.
fn covers(table: &Table, grant: &str, endpoint: &str) -> bool {
    table.grants.get(grant).is_some_and(|grant| match &grant.role {
        Role::Predict(endpoints) => endpoints.is_empty() || endpoints.iter().any(|name| name.as_str() == endpoint),
        Role::Operator | Role::Admin | Role::Member => true,
    })
}

/// An endpoint that a grant covers; whoever has none of it does not learn whether it is there.
fn served<'t>(table: &'t Table, grant: &str, name: &str) -> Result<(&'t EndpointName, &'t Served), capnp::Error> {
    let found = table.endpoints.iter().find(|(known, _)| known.as_str() == name);
    found.filter(|_| covers(table, grant, name)).ok_or_else(|| {
        let name: String = name.chars().take(80).collect();
        capnp::Error::failed(format!("endpoint {name:?} not found; `weir get endpoints` lists what there is"))
    })
}

impl predictor::Server for PredictorObject {
    async fn predict(
        self: Rc<Self>,
        params: predictor::PredictParams,
        mut results: predictor::PredictResults,
    ) -> Result<(), capnp::Error> {
        let request = params.get()?.get_request()?;
        self.home
            .predict(request, results.get().init_response(), |table, endpoint| covers(table, &self.grant, endpoint))
            .await
    }

    async fn describe(
        self: Rc<Self>,
        params: predictor::DescribeParams,
        mut results: predictor::DescribeResults,
    ) -> Result<(), capnp::Error> {
        let name = params.get()?.get_endpoint()?.to_str()?;
        let table = self.home.shared.table.load();
        let (_, served) = served(&table, &self.grant, name)?;
        let mut b = results.get().init_signature();
        let signature = &served.wiring.signature;
        write_specs(b.reborrow().init_inputs(signature.inputs.len() as u32), &signature.inputs);
        write_specs(b.reborrow().init_outputs(signature.outputs.len() as u32), &signature.outputs);
        b.set_label_output(served.ladders.endpoint().label_output.as_deref().unwrap_or(""));
        b.set_deadline_us(span_to_us(served.ladders.endpoint().deadline));
        if let Some(why) = self.home.unready(&table, served) {
            b.set_unready(why);
        }
        Ok(())
    }

    async fn statistics(
        self: Rc<Self>,
        params: predictor::StatisticsParams,
        mut results: predictor::StatisticsResults,
    ) -> Result<(), capnp::Error> {
        let name = params.get()?.get_endpoint()?.to_str()?;
        let shared = &self.home.shared;
        let table = shared.table.load();
        let (known, _) = served(&table, &self.grant, name)?;
        let told = shared.ledger.of(known).statistics(shared.host.clock.now());
        write_statistics(results.get().init_statistics(), shared.incarnation, &told);
        Ok(())
    }
}
