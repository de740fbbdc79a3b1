//! What the labels of a file stand for, where there is no cluster that says so.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;
use weir_core::endpoint::{Endpoint, Label, Labels, Run};
use weir_core::ids::{ModelRef, Version};
use weir_loadgen::scenario::Scenario;

use crate::commands::apply::Declared;
use crate::commands::load::asked::usage;
use crate::connect::Common;
use crate::failure::Failure;

/// Where labels stand.
#[derive(Args)]
pub struct Labelled {
    /// What a label stands for that the file names, as fashion-mid@stable=2 [default: the version that the file declares of its model,
    /// where that is one]
    #[arg(long = "label", env = "WEIR_LABEL", value_name = "MODEL@LABEL=VERSION", value_delimiter = ',')]
    stands_for: Vec<String>,
    /// Labels stand where they do in the cluster, apart from those given by --label
    #[arg(long, env = "WEIR_CLUSTER_LABELS")]
    cluster_labels: bool,
}

impl Labelled {
    /// A file whose endpoints that are asked name versions only.
    pub async fn resolve(
        &self,
        file: &Path,
        declared: Declared,
        scenario: &Scenario,
        common: &Common,
    ) -> Result<Declared, Failure> {
        let given = self.stands_for.iter().map(|text| given(text)).collect::<Result<BTreeMap<_, _>, _>>()?;
        let known = if self.cluster_labels { common.admin()?.status().await?.state.labels } else { Labels::new() };
        let asks = |endpoint: &Endpoint| scenario.parts.iter().any(|part| part.endpoint == endpoint.name.as_str());
        let versions: Vec<&ModelRef> = declared.models.iter().map(|model| &model.reference).collect();
        let asked: Vec<&Endpoint> = declared.endpoints.iter().filter(|endpoint| asks(endpoint)).collect();
        let labels = stand(file, &versions, &asked, &given, &known)?;
        let endpoints = declared.endpoints.iter();
        let endpoints =
            endpoints.map(|endpoint| if asks(endpoint) { plain(endpoint.resolved(&labels)) } else { endpoint.clone() });
        Ok(Declared { endpoints: endpoints.collect(), ..declared })
    }
}

fn given(text: &str) -> Result<(ModelRef, Version), Failure> {
    let wrong = || usage(format!("--label {text}: write it as MODEL@LABEL=VERSION, as fashion-mid@stable=2"));
    let (name, version) = text.split_once('=').ok_or_else(wrong)?;
    Ok((ModelRef::parse(name).map_err(|_| wrong())?, Version::parse(version).map_err(|_| wrong())?))
}

/// What each name stands for that is no version of the file.
fn stand(
    file: &Path,
    declared: &[&ModelRef],
    asked: &[&Endpoint],
    given: &BTreeMap<ModelRef, Version>,
    known: &Labels,
) -> Result<Labels, Failure> {
    let mut labels = Labels::new();
    let named: Vec<ModelRef> =
        asked.iter().flat_map(|endpoint| endpoint.names().all().cloned().collect::<Vec<_>>()).collect();
    for name in named.iter().filter(|name| !declared.contains(name)) {
        let versions: Vec<&Version> =
            declared.iter().filter(|model| model.name == name.name).map(|model| &model.version).collect();
        let told = || versions.iter().map(|version| version.as_str()).collect::<Vec<_>>().join(", ");
        let version = match (given.get(name).or(known.get(name).map(|label| &label.version)), &versions[..]) {
            (Some(version), _) => version,
            (None, [only]) => *only,
            // Whoever looks for the model says that there is none.
            (None, []) => continue,
            (None, _) => {
                return Err(usage(format!(
                    "{} names {name}, which is none of the versions that it declares ({}); say what it stands for with \
                     --label {name}=VERSION, or --cluster-labels",
                    file.display(),
                    told()
                )));
            }
        };
        if !versions.contains(&version) {
            return Err(usage(format!(
                "{name} stands for version {version}, and {} declares {}; declare that version, or give another one with --label",
                file.display(),
                if versions.is_empty() { "none of that model".into() } else { told() }
            )));
        }
        labels.insert(name.clone(), Label::new(name.clone(), version.clone()));
    }
    if let Some(unused) = given.keys().find(|name| !named.contains(name)) {
        return Err(usage(format!("--label {unused}: no endpoint that is asked names it")));
    }
    Ok(labels)
}

/// With all queries on one version it is an endpoint of that model.
fn plain(endpoint: Endpoint) -> Endpoint {
    let ([only], [stage]) = (&endpoint.versions[..], &endpoint.stages[..]) else { return endpoint };
    let mut stage = stage.clone();
    stage.run = Run::Model(only.model.clone());
    Endpoint { stages: vec![stage], versions: Vec::new(), named: None, ..endpoint }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weir_core::endpoint::{Split, Stage};
    use weir_core::ids::{EndpointName, StageName};

    use super::*;

    fn model(text: &str) -> ModelRef {
        ModelRef::parse(text).unwrap()
    }

    fn endpoint(names: &[&str]) -> Endpoint {
        let stage = |name: &&str| Stage::new(StageName::parse(&name.replace('@', ".")).unwrap(), model(name), None);
        let stages = names.iter().map(stage).collect();
        Endpoint::new(EndpointName::parse("e").unwrap(), Duration::from_millis(50), stages)
    }

    fn found(names: &[&str], given: &[(&str, &str)], known: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let versions = ["tiny@1", "mid@1", "mid@2"].map(model);
        let version = |text: &str| Version::parse(text).unwrap();
        let given = given.iter().map(|(name, at)| (model(name), version(at))).collect();
        let known = known.iter().map(|(name, at)| (model(name), Label::new(model(name), version(at)))).collect();
        let endpoint = endpoint(names);
        let labels = stand(Path::new("f.toml"), &versions.each_ref(), &[&endpoint], &given, &known);
        match labels {
            Ok(labels) => Ok(endpoint.resolved(&labels).models().map(ToString::to_string).collect()),
            Err(failure) => Err(failure.to_string()),
        }
    }

    #[test]
    fn a_label_stands_for_the_only_version_or_for_what_somebody_says() {
        assert_eq!(found(&["tiny@stable", "mid@2"], &[], &[]).unwrap(), ["tiny@1", "mid@2"]);
        assert_eq!(found(&["mid@stable"], &[("mid@stable", "2")], &[("mid@stable", "1")]).unwrap(), ["mid@2"]);
        assert_eq!(found(&["mid@stable"], &[], &[("mid@stable", "1")]).unwrap(), ["mid@1"]);
        let said = found(&["mid@stable"], &[], &[]).unwrap_err();
        assert!(said.contains("(1, 2)") && said.contains("--label mid@stable=VERSION"), "{said}");
        let said = found(&["mid@stable"], &[], &[("mid@stable", "3")]).unwrap_err();
        assert!(said.contains("stands for version 3, and f.toml declares 1, 2"), "{said}");
        let said = found(&["mid@1"], &[("mid@canary", "1")], &[]).unwrap_err();
        assert!(said.contains("no endpoint that is asked names it"), "{said}");
        assert_eq!(
            found(&["other@stable"], &[], &[]).unwrap(),
            ["other@stable"],
            "that there is no such model others say"
        );
        assert!(given("mid@stable").is_err() && given("stable=1").is_err());
    }

    #[test]
    fn two_labels_of_one_version_are_an_endpoint_of_it() {
        let split = |name: &str, share| Split { model: model(name), share };
        let mut canary = endpoint(&["m@stable"]);
        canary.versions = vec![split("m@stable", 90), split("m@canary", 10)];
        let labels = |canary: &str| {
            let at = [("m@stable", "1"), ("m@canary", canary)];
            at.map(|(name, at)| (model(name), Label::new(model(name), Version::parse(at).unwrap()))).into()
        };
        let same = plain(canary.resolved(&labels("1")));
        assert_eq!((same.stages[0].model(), same.versions.len()), (Some(&model("m@1")), 0));
        assert_eq!(plain(canary.resolved(&labels("2"))).versions.len(), 2, "they are not simulated together");
    }
}
