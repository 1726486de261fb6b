from privbench.defenses.accounting.plan import ClientLevel, ClientPlan, Facts, Plan, Privacy, RecordLevel, RecordPlan

__all__ = ["ClientLevel", "ClientPlan", "Facts", "Plan", "Privacy", "RecordLevel", "RecordPlan"]
