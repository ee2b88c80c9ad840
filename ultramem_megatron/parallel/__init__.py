"""Process groups, collectives and the partitions of a value table. torch.distributed lives here."""
