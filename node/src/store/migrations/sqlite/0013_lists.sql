-- Lists by state go along an index, however long the history of a party is.
CREATE INDEX tasks_by_client_status ON tasks (client, status, id);
CREATE INDEX tasks_by_provider_status ON tasks (provider, status, id);
CREATE INDEX tasks_by_client_owner_status ON tasks (client_owner, status, id);
CREATE INDEX negotiations_by_client_status ON negotiations (client, status, listed_as);
CREATE INDEX negotiations_by_provider_status ON negotiations (provider, status, listed_as);

-- The state of its task, for the same. Triggers keep it: whatever changes a task need not know of it.
ALTER TABLE hirings ADD COLUMN status TEXT NOT NULL DEFAULT 'pending';
UPDATE hirings SET status = (SELECT status FROM tasks WHERE tasks.id = hirings.task);
CREATE INDEX hirings_by_user_status ON hirings (user, status, id);
CREATE INDEX hirings_by_client_status ON hirings (client, status, id);
CREATE INDEX hirings_by_agent_status ON hirings (agent, status, id);
CREATE TRIGGER hirings_follow_their_task AFTER UPDATE OF status ON tasks WHEN new.hiring IS NOT NULL
BEGIN
    UPDATE hirings SET status = new.status WHERE id = new.hiring AND task = new.id;
END;
CREATE TRIGGER hirings_begin_as_their_task AFTER INSERT ON hirings
BEGIN
    UPDATE hirings SET status = (SELECT status FROM tasks WHERE id = new.task) WHERE id = new.id;
END;
CREATE TRIGGER hirings_go_on_as_their_task AFTER UPDATE OF task ON hirings
BEGIN
    UPDATE hirings SET status = (SELECT status FROM tasks WHERE id = new.task) WHERE id = new.id;
END;

-- Payment channels of an opener that are not over: they are bounded.
CREATE INDEX payment_channels_live ON payment_channels (agent_a) WHERE status IN ('pending', 'open', 'disputed');
