-- In the order in which a hiring is tried again, by nodes of an older version too.
LOCK TABLE hirings IN ACCESS EXCLUSIVE MODE;
LOCK TABLE tasks IN SHARE ROW EXCLUSIVE MODE;

-- Lists by state go along an index, however long the history of a party is.
CREATE INDEX tasks_by_client_status ON tasks (client, status, id);
CREATE INDEX tasks_by_provider_status ON tasks (provider, status, id);
CREATE INDEX tasks_by_client_owner_status ON tasks (client_owner, status, id);
CREATE INDEX negotiations_by_client_status ON negotiations (client, status, listed_as);
CREATE INDEX negotiations_by_provider_status ON negotiations (provider, status, listed_as);

-- The state of its task, for the same. Triggers keep it: whatever changes a task need not know of it, nor need nodes of an
-- older version.
ALTER TABLE hirings ADD COLUMN status text NOT NULL DEFAULT 'pending';
UPDATE hirings SET status = (SELECT status FROM tasks WHERE tasks.id = hirings.task);
CREATE INDEX hirings_by_user_status ON hirings (user_id, status, id);
CREATE INDEX hirings_by_client_status ON hirings (client, status, id);
CREATE INDEX hirings_by_agent_status ON hirings (agent, status, id);
CREATE FUNCTION hirings_follow_their_task() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE hirings SET status = NEW.status WHERE id = NEW.hiring AND task = NEW.id;
    RETURN NULL;
END
$$;
CREATE TRIGGER hirings_follow_their_task AFTER UPDATE OF status ON tasks
FOR EACH ROW WHEN (NEW.hiring IS NOT NULL AND OLD.status IS DISTINCT FROM NEW.status)
EXECUTE FUNCTION hirings_follow_their_task();
CREATE FUNCTION hirings_are_as_their_task() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT status INTO NEW.status FROM tasks WHERE id = NEW.task;
    RETURN NEW;
END
$$;
CREATE TRIGGER hirings_are_as_their_task BEFORE INSERT OR UPDATE OF task ON hirings
FOR EACH ROW EXECUTE FUNCTION hirings_are_as_their_task();

-- Payment channels of an opener that are not over: they are bounded.
CREATE INDEX payment_channels_live ON payment_channels (agent_a) WHERE status IN ('pending', 'open', 'disputed');
