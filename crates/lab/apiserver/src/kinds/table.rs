//! The built-in kinds, one row each, in discovery order.

use super::{Generation, KindInfo, NameRule, Propagation, Rules, Subresource, SubresourceKind, Verbs};
use crate::{admit, validate};

/// A row under construction.
struct Row(KindInfo);

const B: Rules = Rules::BUILTIN;
/// Resources whose DELETE answers with the object; that of others answers with a Status. Typed clients rely on it.
const RETURNED: [&str; 16] = [
    "csidrivers",
    "csinodes",
    "deviceclasses",
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "resourceclaims",
    "resourceclaimtemplates",
    "resourcequotas",
    "resourceslices",
    "serviceaccounts",
    "services",
    "storageclasses",
    "volumeattachments",
    "volumeattributesclasses",
];
const GET_PATCH_UPDATE: Verbs = Verbs::GET.and(Verbs::PATCH).and(Verbs::UPDATE);

/// A cluster-scoped kind.
fn cluster(group: &str, version: &str, kind: &str, plural: &str, rules: Rules) -> Row {
    row(group, version, kind, plural, false, rules)
}

/// A namespaced kind.
fn spaced(group: &str, version: &str, kind: &str, plural: &str, rules: Rules) -> Row {
    row(group, version, kind, plural, true, rules)
}

fn row(group: &str, version: &str, kind: &str, plural: &str, namespaced: bool, rules: Rules) -> Row {
    let rules = Rules { returns_deleted: RETURNED.contains(&plural), ..rules };
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Row(KindInfo {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        list_kind: format!("{kind}List").into(),
        plural: plural.into(),
        singular: kind.to_lowercase().into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced,
        verbs: if rules.virtual_kind { Verbs::CREATE } else { Verbs::ALL },
        status: false,
        subresources: Vec::new(),
        rules,
        prefix: format!("/registry/{}/{plural}/", if group.is_empty() { "core" } else { group }).into(),
        storage_api_version: api_version.clone().into(),
        api_version: api_version.into(),
        custom: None,
    })
}

impl Row {
    fn short(mut self, names: &[&str]) -> Self {
        self.0.short_names = names.iter().map(|name| (*name).into()).collect();
        self
    }

    fn all(mut self) -> Self {
        self.0.categories.push("all".into());
        self
    }

    fn category(mut self, name: &str) -> Self {
        self.0.categories.push(name.into());
        self
    }

    fn verbs(mut self, verbs: Verbs) -> Self {
        self.0.verbs = verbs;
        self
    }

    fn status(mut self) -> Self {
        self.0.status = true;
        self.sub("status", None, GET_PATCH_UPDATE, SubresourceKind::Status)
    }

    fn scale(self, selector: &str) -> Self {
        self.sub(
            "scale",
            Some(("autoscaling", "v1", "Scale")),
            GET_PATCH_UPDATE,
            SubresourceKind::Scale {
                spec: ".spec.replicas".into(),
                status: ".status.replicas".into(),
                selector: Some(selector.into()),
            },
        )
    }

    fn sub(
        mut self,
        name: &str,
        foreign: Option<(&'static str, &'static str, &'static str)>,
        verbs: Verbs,
        kind: SubresourceKind,
    ) -> Self {
        self.0.subresources.push(Subresource { name: name.into(), foreign, verbs, kind });
        self.0.subresources.sort_by(|a, b| a.name.cmp(&b.name));
        self
    }

    /// Objects live under another group's key: a second view of the same store.
    fn view_of(mut self, prefix: &str, storage_api_version: &str) -> Self {
        self.0.prefix = prefix.into();
        self.0.storage_api_version = storage_api_version.into();
        self
    }
}

/// Rules of a kind with a `spec` whose changes are counted.
const SPEC: Rules = Rules { generation: Generation::Spec, ..B };
const REVIEW: Rules = Rules { virtual_kind: true, ..B };
const RBAC: Rules = Rules { name: NameRule::PathSegment, create_on_update: true, ..B };

/// Every built-in kind.
pub(super) fn builtin() -> Vec<KindInfo> {
    let rows =
        [core(), apps(), reviews(), scaling_and_batch(), network(), policy_and_rbac(), storage(), registration()];
    rows.into_iter().flatten().map(|row| row.0).collect()
}

fn core() -> Vec<Row> {
    vec![
        spaced("", "v1", "Binding", "bindings", REVIEW),
        spaced("", "v1", "ConfigMap", "configmaps", Rules { check: Some(validate::core::config_map), ..B })
            .short(&["cm"]),
        spaced("", "v1", "Endpoints", "endpoints", Rules { create_on_update: true, ..B }).short(&["ep"]),
        spaced(
            "",
            "v1",
            "Event",
            "events",
            Rules {
                create_on_update: true,
                ttl: Some(3600),
                selectable: &[
                    "involvedObject.kind",
                    "involvedObject.namespace",
                    "involvedObject.name",
                    "involvedObject.uid",
                    "involvedObject.apiVersion",
                    "involvedObject.resourceVersion",
                    "involvedObject.fieldPath",
                    "reason",
                    "reportingComponent",
                    "source",
                    "type",
                ],
                check: Some(validate::core::event),
                ..B
            },
        )
        .short(&["ev"]),
        spaced("", "v1", "LimitRange", "limitranges", Rules { create_on_update: true, ..B }).short(&["limits"]),
        cluster(
            "",
            "v1",
            "Namespace",
            "namespaces",
            Rules { name: NameRule::Label, selectable: &["status.phase"], prepare: Some(admit::core::namespace), ..B },
        )
        .short(&["ns"])
        .verbs(Verbs::NO_COLLECTION)
        .status()
        .sub("finalize", None, Verbs::UPDATE, SubresourceKind::Finalize),
        cluster(
            "",
            "v1",
            "Node",
            "nodes",
            Rules { selectable: &["spec.unschedulable"], prepare: Some(admit::core::node), ..B },
        )
        .short(&["no"])
        .status(),
        spaced(
            "",
            "v1",
            "PersistentVolumeClaim",
            "persistentvolumeclaims",
            Rules {
                finalizer: Some("kubernetes.io/pvc-protection"),
                prepare: Some(admit::storage::claim),
                check: Some(validate::storage::claim),
                ..B
            },
        )
        .short(&["pvc"])
        .status(),
        cluster(
            "",
            "v1",
            "PersistentVolume",
            "persistentvolumes",
            Rules {
                finalizer: Some("kubernetes.io/pv-protection"),
                prepare: Some(admit::storage::volume),
                check: Some(validate::storage::volume),
                ..B
            },
        )
        .short(&["pv"])
        .status(),
        spaced(
            "",
            "v1",
            "Pod",
            "pods",
            Rules {
                generation: Generation::Spec,
                graceful: true,
                selectable: &[
                    "spec.nodeName",
                    "spec.restartPolicy",
                    "spec.schedulerName",
                    "spec.serviceAccountName",
                    "spec.hostNetwork",
                    "status.phase",
                    "status.podIP",
                    "status.podIPs",
                    "status.nominatedNodeName",
                ],
                prepare: Some(admit::core::pod),
                check: Some(validate::pod::pod),
                ..B
            },
        )
        .short(&["po"])
        .all()
        .status()
        .sub("binding", Some(("", "v1", "Binding")), Verbs::CREATE, SubresourceKind::Binding)
        .sub("eviction", Some(("policy", "v1", "Eviction")), Verbs::CREATE, SubresourceKind::Eviction)
        .sub(
            "ephemeralcontainers",
            None,
            GET_PATCH_UPDATE,
            SubresourceKind::Part { pointer: "/spec/ephemeralContainers" },
        )
        .sub("resize", None, GET_PATCH_UPDATE, SubresourceKind::Part { pointer: "/spec/containers" }),
        spaced("", "v1", "PodTemplate", "podtemplates", SPEC),
        spaced(
            "",
            "v1",
            "ReplicationController",
            "replicationcontrollers",
            Rules { propagation: Propagation::Orphan, selectable: &["status.replicas"], ..SPEC },
        )
        .short(&["rc"])
        .all()
        .status()
        .scale(".spec.selector"),
        spaced("", "v1", "ResourceQuota", "resourcequotas", B).short(&["quota"]).status(),
        spaced(
            "",
            "v1",
            "Secret",
            "secrets",
            Rules {
                selectable: &["type"],
                immutable: &["type"],
                prepare: Some(admit::core::secret),
                check: Some(validate::core::secret),
                ..B
            },
        ),
        spaced("", "v1", "ServiceAccount", "serviceaccounts", B).short(&["sa"]).sub(
            "token",
            Some(("authentication.k8s.io", "v1", "TokenRequest")),
            Verbs::CREATE,
            SubresourceKind::Token,
        ),
        spaced(
            "",
            "v1",
            "Service",
            "services",
            Rules {
                name: NameRule::Label1035,
                create_on_update: true,
                selectable: &["spec.clusterIP", "spec.type"],
                prepare: Some(admit::core::service),
                check: Some(validate::core::service),
                ..B
            },
        )
        .short(&["svc"])
        .all()
        .status(),
    ]
}

fn apps() -> Vec<Row> {
    let workload = Rules { check: Some(validate::workload::workload), ..SPEC };
    let selector = Rules { immutable: &["spec.selector"], ..workload };
    vec![
        spaced("apps", "v1", "ControllerRevision", "controllerrevisions", Rules { immutable: &["data"], ..B }),
        spaced("apps", "v1", "DaemonSet", "daemonsets", selector).short(&["ds"]).all().status(),
        spaced(
            "apps",
            "v1",
            "Deployment",
            "deployments",
            Rules { generation: Generation::SpecAndAnnotations, ..selector },
        )
        .short(&["deploy"])
        .all()
        .status()
        .scale(".spec.selector"),
        spaced("apps", "v1", "ReplicaSet", "replicasets", Rules { selectable: &["status.replicas"], ..selector })
            .short(&["rs"])
            .all()
            .status()
            .scale(".spec.selector"),
        spaced(
            "apps",
            "v1",
            "StatefulSet",
            "statefulsets",
            Rules {
                immutable: &[
                    "spec.selector",
                    "spec.serviceName",
                    "spec.podManagementPolicy",
                    "spec.volumeClaimTemplates",
                ],
                ..workload
            },
        )
        .short(&["sts"])
        .all()
        .status()
        .scale(".spec.selector"),
    ]
}

fn reviews() -> Vec<Row> {
    vec![
        cluster("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", REVIEW),
        cluster("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", REVIEW),
        spaced("authorization.k8s.io", "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews", REVIEW),
        cluster("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", REVIEW),
        cluster("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", REVIEW),
        cluster("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", REVIEW),
    ]
}

fn scaling_and_batch() -> Vec<Row> {
    vec![
        spaced("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", SPEC)
            .short(&["hpa"])
            .all()
            .status(),
        spaced("batch", "v1", "CronJob", "cronjobs", SPEC).short(&["cj"]).all().status(),
        spaced(
            "batch",
            "v1",
            "Job",
            "jobs",
            Rules {
                propagation: Propagation::Orphan,
                selectable: &["status.successful"],
                immutable: &["spec.selector", "spec.completionMode", "spec.template"],
                prepare: Some(admit::core::job),
                ..SPEC
            },
        )
        .all()
        .status(),
        cluster(
            "certificates.k8s.io",
            "v1",
            "CertificateSigningRequest",
            "certificatesigningrequests",
            Rules {
                selectable: &["spec.signerName"],
                immutable: &["spec"],
                prepare: Some(admit::core::signing_request),
                ..B
            },
        )
        .short(&["csr"])
        .status()
        .sub("approval", None, GET_PATCH_UPDATE, SubresourceKind::Part { pointer: "/status/conditions" }),
        spaced(
            "coordination.k8s.io",
            "v1",
            "Lease",
            "leases",
            Rules { create_on_update: true, unconditional_update: false, check: Some(validate::core::lease), ..B },
        ),
    ]
}

fn network() -> Vec<Row> {
    vec![
        spaced(
            "discovery.k8s.io",
            "v1",
            "EndpointSlice",
            "endpointslices",
            Rules { immutable: &["addressType"], ..SPEC },
        ),
        spaced(
            "events.k8s.io",
            "v1",
            "Event",
            "events",
            Rules {
                create_on_update: true,
                ttl: Some(3600),
                selectable: &[
                    "regarding.kind",
                    "regarding.namespace",
                    "regarding.name",
                    "regarding.uid",
                    "regarding.apiVersion",
                    "regarding.resourceVersion",
                    "regarding.fieldPath",
                    "reason",
                    "reportingController",
                    "type",
                ],
                ..B
            },
        )
        .short(&["ev"])
        .view_of("/registry/core/events/", "v1"),
        cluster(
            "networking.k8s.io",
            "v1",
            "IngressClass",
            "ingressclasses",
            Rules { immutable: &["spec.controller"], ..SPEC },
        ),
        spaced("networking.k8s.io", "v1", "Ingress", "ingresses", SPEC).short(&["ing"]).status(),
        cluster("networking.k8s.io", "v1", "IPAddress", "ipaddresses", SPEC).short(&["ip"]),
        spaced("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", SPEC).short(&["netpol"]),
        cluster("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", SPEC).status(),
        cluster(
            "node.k8s.io",
            "v1",
            "RuntimeClass",
            "runtimeclasses",
            Rules { unconditional_update: false, immutable: &["handler"], ..B },
        ),
    ]
}

fn policy_and_rbac() -> Vec<Row> {
    let binding = Rules { immutable: &["roleRef"], ..RBAC };
    vec![
        spaced(
            "policy",
            "v1",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            Rules { unconditional_update: false, ..SPEC },
        )
        .short(&["pdb"])
        .status(),
        cluster("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", binding),
        cluster("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", RBAC),
        spaced("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", binding),
        spaced("rbac.authorization.k8s.io", "v1", "Role", "roles", RBAC),
        cluster("resource.k8s.io", "v1", "DeviceClass", "deviceclasses", SPEC),
        spaced("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims", Rules { immutable: &["spec"], ..B })
            .status(),
        spaced(
            "resource.k8s.io",
            "v1",
            "ResourceClaimTemplate",
            "resourceclaimtemplates",
            Rules { immutable: &["spec"], ..B },
        ),
        cluster(
            "resource.k8s.io",
            "v1",
            "ResourceSlice",
            "resourceslices",
            Rules {
                selectable: &["spec.nodeName", "spec.driver"],
                immutable: &["spec.nodeName", "spec.driver", "spec.pool.name"],
                ..SPEC
            },
        ),
        cluster(
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            "priorityclasses",
            Rules { generation: Generation::Content, immutable: &["value", "preemptionPolicy"], ..B },
        )
        .short(&["pc"]),
    ]
}

fn storage() -> Vec<Row> {
    let exact = Rules { unconditional_update: false, ..B };
    vec![
        cluster(
            "storage.k8s.io",
            "v1",
            "CSIDriver",
            "csidrivers",
            Rules {
                generation: Generation::Spec,
                prepare: Some(admit::storage::csi_driver),
                check: Some(validate::storage::csi_driver),
                ..exact
            },
        ),
        cluster(
            "storage.k8s.io",
            "v1",
            "CSINode",
            "csinodes",
            Rules { check: Some(validate::storage::csi_node), ..exact },
        ),
        spaced(
            "storage.k8s.io",
            "v1",
            "CSIStorageCapacity",
            "csistoragecapacities",
            Rules {
                immutable: &["storageClassName", "nodeTopology"],
                check: Some(validate::storage::capacity),
                ..exact
            },
        ),
        cluster(
            "storage.k8s.io",
            "v1",
            "StorageClass",
            "storageclasses",
            Rules {
                immutable: &["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"],
                check: Some(validate::storage::class),
                ..B
            },
        )
        .short(&["sc"]),
        cluster(
            "storage.k8s.io",
            "v1",
            "VolumeAttachment",
            "volumeattachments",
            Rules {
                generation: Generation::None,
                immutable: &["spec"],
                prepare: Some(admit::storage::attachment),
                check: Some(validate::storage::attachment),
                ..exact
            },
        )
        .status(),
        cluster(
            "storage.k8s.io",
            "v1",
            "VolumeAttributesClass",
            "volumeattributesclasses",
            Rules { immutable: &["driverName", "parameters"], check: Some(validate::storage::attributes_class), ..B },
        )
        .short(&["vac"]),
    ]
}

fn registration() -> Vec<Row> {
    let exact = Rules { unconditional_update: false, generation: Generation::Content, ..B };
    let policy = Rules { unconditional_update: false, ..SPEC };
    let group = "admissionregistration.k8s.io";
    vec![
        cluster(group, "v1", "MutatingAdmissionPolicy", "mutatingadmissionpolicies", policy),
        cluster(group, "v1", "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings", policy),
        cluster(group, "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", exact)
            .category("api-extensions"),
        cluster(group, "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies", policy)
            .category("api-extensions")
            .status(),
        cluster(group, "v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", policy)
            .category("api-extensions"),
        cluster(group, "v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", exact)
            .category("api-extensions"),
        cluster(
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
            Rules {
                unconditional_update: false,
                prepare: Some(crate::crd::prepare),
                check: Some(crate::crd::check),
                finalizer: None,
                ..SPEC
            },
        )
        .short(&["crd", "crds"])
        .category("api-extensions")
        .status(),
    ]
}
