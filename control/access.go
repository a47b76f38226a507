package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// The principals and roles that are known without being defined.
const (
	LocalPrefix = "local:"      // of principals that exist here alone
	FirstOwner  = "local:admin" // whom Bootstrap makes an Owner
	RoleOwner   = "Owner"       // the one that somebody must always hold at Everywhere
)

// Bounds of local tokens.
const (
	TokenPrefix  = "jgt_"               // so that scanners for leaked secrets find one
	tokenValid   = 30 * 24 * time.Hour  // unless said
	longestToken = 366 * 24 * time.Hour // then somebody has to want it again
	maxNote      = 256                  // of the bytes of a note or description
	maxActions   = 50                   // of a role
)

// The events of the activity log that are about who may what.
const (
	EventAccessGiven  = "access.given"
	EventAccessTaken  = "access.taken"
	EventRoleWritten  = "role.written"
	EventRoleDeleted  = "role.deleted"
	EventTokenCreated = "token.created"
	EventTokenRevoked = "token.revoked"
)

// The forms of what names a principal or a role.
var (
	localPrincipal   = regexp.MustCompile(`^local:[a-z0-9][a-z0-9._@+-]{0,63}$`)
	foreignPrincipal = regexp.MustCompile(`^https://[!-~]{1,400}#[!-~]{1,200}$`)
	groupForm        = regexp.MustCompile(`^(group|role):[^\pC]+$`)
	roleForm         = regexp.MustCompile(`^[\pL\pN][\pL\pN ._()-]*$`)
	actionPattern    = regexp.MustCompile(`^[A-Za-z0-9.*/_-]{1,160}$`)
)

// isGroup and isRoleName count outside the expression: one that counts letters of
// all scripts is compiled as often as it counts, to ten megabytes here.
func isGroup(principal string) bool {
	_, name, _ := strings.Cut(principal, ":")
	return utf8.RuneCountInString(name) <= 200 && groupForm.MatchString(principal)
}

func isRoleName(s string) bool {
	return utf8.RuneCountInString(s) <= 128 && roleForm.MatchString(s)
}

// NewToken makes a bearer token, which is shown once, and the hash of it that
// is kept.
func NewToken() (token, hash string) {
	secret := make([]byte, 32)
	rand.Read(secret)
	token = TokenPrefix + base64.RawURLEncoding.EncodeToString(secret)
	return token, HashToken(token)
}

// HashToken is how the store knows a token. The secret has 256 random bits, so
// there is nothing to guess and a slow hash would only cost us.
func HashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// tokenID is what people call a token by.
func tokenID(hash string) string { return hash[:12] }

// Bootstrap makes FirstOwner the Owner of everything, with the token of this
// hash, where nobody is Owner of everything yet; given reports whether it did.
// The caller keeps the token first and the hash after it: called again with
// the same token after a crash, it finishes what was begun.
func Bootstrap(ctx context.Context, s Store, hash string, now time.Time) (given bool, err error) {
	err = s.Update(ctx, func(tx Tx) error {
		given = false
		all, err := tx.Assignments()
		if err != nil || owners(all) > 0 {
			return err
		}
		owner := Assignment{Principal: FirstOwner, Role: RoleOwner, Scope: Everywhere}
		token := Token{Hash: hash, ID: tokenID(hash), Principal: FirstOwner, Name: "admin", Note: "made at the first start", Created: now}
		given = true
		return errors.Join(tx.PutAssignment(owner), tx.PutToken(token), tx.AppendActivity(
			Activity{Time: now, Event: EventAccessGiven, Operation: string(ActionRoles), Status: "Succeeded", Scope: Everywhere, Reason: "Owner to " + FirstOwner + ": the first start"},
			Activity{Time: now, Event: EventTokenCreated, Operation: string(ActionRoles), Status: "Succeeded", Scope: Everywhere, Reason: token.ID + " for " + FirstOwner + ": the first start"}))
	})
	return given && err == nil, err
}

// owners counts who is Owner of everything by themselves: a group may have
// nobody in it.
func owners(all []Assignment) (n int) {
	for _, a := range all {
		if a.Scope == Everywhere && strings.EqualFold(a.Role, RoleOwner) && !isGroup(a.Principal) {
			n++
		}
	}
	return n
}

// ResolveRights turns assignments into rights by the roles defined here and
// the built-in ones, which nothing hides. A role nobody knows gives no right.
func ResolveRights(assigned []Assignment, defined []Role) []Right {
	var rights []Right
	for _, a := range assigned {
		if r, ok := findRole(a.Role, defined); ok {
			rights = append(rights, Right{Role: r, Scope: a.Scope})
		}
	}
	return rights
}

// TokenLimits are the bounds a token puts on what its owner may; nil is none.
// A role nobody knows any more leaves nothing.
func TokenLimits(t Token, defined []Role) []Right {
	if t.Role == "" && t.Scope == "" {
		return nil
	}
	scope := cmp.Or(t.Scope, Everywhere)
	if t.Role == "" {
		return []Right{{Role: anyRole, Scope: scope}}
	}
	r, ok := findRole(t.Role, defined)
	if !ok {
		return []Right{}
	}
	return []Right{{Role: r, Scope: scope}}
}

// findRole finds a role by name; the built-in ones come first.
func findRole(name string, defined []Role) (Role, bool) {
	named := func(r Role) bool { return strings.EqualFold(r.Name, name) }
	for _, roles := range [][]Role{BuiltinRoles(), defined} {
		if i := slices.IndexFunc(roles, named); i >= 0 {
			return roles[i], true
		}
	}
	return Role{}, false
}

// mustCover refuses to let a caller hand out, or take away, a role that
// reaches beyond the caller's own rights at s.
func (c Caller) mustCover(r Role, s Scope) error {
	if c.covers(r, s) {
		return nil
	}
	return Refuse(Forbidden, "AuthorizationFailed",
		"The client '%s' with object id '%s' does not itself have all that role '%s' allows over scope '%s', and so can neither give it nor take it away.", c.Name, c.ID, r.Name, s)
}

// ListRoles lists all roles, the built-in ones first. Whoever may give roles
// somewhere sees them.
func (e *Engine) ListRoles(ctx context.Context, c Caller) (roles []Role, err error) {
	if err := c.mustSomewhere(ActionRoles, Everywhere); err != nil {
		return nil, err
	}
	err = e.Store.View(ctx, func(tx Tx) error {
		defined, err := tx.Roles()
		roles = append(BuiltinRoles(), defined...)
		return err
	})
	return roles, err
}

// PutRole defines a role or replaces it. Roles have no scope, so that needs
// ActionRoles at Everywhere, and nobody defines a role that reaches beyond
// their own rights, nor changes one that does.
func (e *Engine) PutRole(ctx context.Context, c Caller, r Role) (Role, error) {
	err := e.change(ctx, c, c.line(EventRoleWritten, ActionRoles, Everywhere, r.Name), func(tx Tx) error {
		if err := c.Must(ActionRoles, Everywhere); err != nil {
			return err
		}
		if err := checkRole(r); err != nil {
			return err
		}
		defined, err := tx.Roles()
		if err != nil {
			return err
		}
		if old, ok := findRole(r.Name, defined); ok {
			if err := c.mustCover(old, Everywhere); err != nil {
				return err
			}
			r.Name = old.Name // one role, one spelling
		}
		if err := c.mustCover(r, Everywhere); err != nil {
			return err
		}
		return tx.PutRole(r)
	})
	return r, err
}

// checkRole refuses what is no role.
func checkRole(r Role) error {
	bad := func(target, format string, args ...any) error {
		e := Refuse(Invalid, "InvalidRoleDefinition", format, args...)
		e.Target = target
		return e
	}
	if !isRoleName(r.Name) || strings.HasSuffix(r.Name, " ") {
		return bad("name", "'%s' is not a role's name: letters, digits, spaces and . _ ( ) -, at most 128.", clip(r.Name))
	}
	if _, ok := findRole(r.Name, nil); ok {
		return bad("name", "'%s' is a built-in role, which cannot be changed. Choose another name.", r.Name)
	}
	if len(r.Description) > maxNote {
		return bad("description", "The description is longer than %d bytes.", maxNote)
	}
	if len(r.Actions) == 0 || len(r.Actions)+len(r.NotActions) > maxActions {
		return bad("actions", "A role has at least one action, and at most %d actions and notActions.", maxActions)
	}
	for _, a := range slices.Concat(r.Actions, r.NotActions) {
		if !actionPattern.MatchString(a) {
			return bad("actions", "'%s' is not an action, such as %s, with * for any run of characters.", clip(a), ActionInitiate)
		}
	}
	return nil
}

// DeleteRole removes a role that was defined here and is given to nobody.
func (e *Engine) DeleteRole(ctx context.Context, c Caller, name string) error {
	return e.change(ctx, c, c.line(EventRoleDeleted, ActionRoles, Everywhere, clip(name)), func(tx Tx) error {
		if err := c.Must(ActionRoles, Everywhere); err != nil {
			return err
		}
		if _, ok := findRole(name, nil); ok {
			return Refuse(Invalid, "InvalidRoleDefinition", "'%s' is a built-in role, which cannot be deleted.", name)
		}
		defined, err := tx.Roles()
		if err != nil {
			return err
		}
		r, ok := findRole(name, defined)
		if !ok {
			return Refuse(NotFound, "RoleDefinitionDoesNotExist", "There is no role '%s'.", clip(name))
		}
		if err := c.mustCover(r, Everywhere); err != nil {
			return err
		}
		all, err := tx.Assignments()
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(all, func(a Assignment) bool { return strings.EqualFold(a.Role, name) }); i >= 0 {
			return Refuse(Conflict, "RoleDefinitionHasAssignments", "Role '%s' is still given to '%s' over scope '%s'. Take it away first.", r.Name, all[i].Principal, all[i].Scope)
		}
		return tx.DeleteRole(r.Name)
	})
}

// ListAssignments lists who has which role at s and below, as far as the
// caller may give roles there. The empty scope is Everywhere.
func (e *Engine) ListAssignments(ctx context.Context, c Caller, s Scope) (given []Assignment, err error) {
	s = cmp.Or(s, Everywhere)
	if err := c.mustSomewhere(ActionRoles, s); err != nil {
		return nil, err
	}
	err = e.Store.View(ctx, func(tx Tx) error {
		all, err := tx.Assignments()
		given = slices.DeleteFunc(all, func(a Assignment) bool { return !s.Covers(a.Scope) || !c.May(ActionRoles, a.Scope) })
		return err
	})
	return given, err
}

// Assign gives a role to a principal at a scope. Nobody gives what they do not
// have themselves there.
func (e *Engine) Assign(ctx context.Context, c Caller, a Assignment) error {
	if err := checkScope(&a.Scope); err != nil {
		return err
	}
	return e.change(ctx, c, c.line(EventAccessGiven, ActionRoles, a.Scope, clip(a.Role)+" to "+clip(a.Principal)), func(tx Tx) error {
		if err := c.Must(ActionRoles, a.Scope); err != nil {
			return err
		}
		if err := checkPrincipal(a.Principal); err != nil {
			return err
		}
		defined, err := tx.Roles()
		if err != nil {
			return err
		}
		r, ok := findRole(a.Role, defined)
		if !ok {
			return Refuse(Invalid, "RoleDefinitionDoesNotExist", "There is no role '%s'.", clip(a.Role))
		}
		if err := c.mustCover(r, a.Scope); err != nil {
			return err
		}
		a.Role = r.Name
		return tx.PutAssignment(a)
	})
}

// checkScope refuses what is no scope, and spells it as scopes are compared.
func checkScope(s *Scope) error {
	parsed, err := ParseScope(string(*s))
	if err != nil {
		e := Refuse(Invalid, "InvalidScope", "%v.", err)
		e.Target = "scope"
		return e
	}
	*s = parsed
	return nil
}

// checkPrincipal refuses what names nobody.
func checkPrincipal(p string) error {
	if localPrincipal.MatchString(p) || foreignPrincipal.MatchString(p) || isGroup(p) {
		return nil
	}
	e := Refuse(Invalid, "InvalidPrincipalId",
		"'%s' is not a principal: local:NAME in lower case, ISSUER#SUBJECT as the caller's own id says, group:NAME or role:NAME.", clip(p))
	e.Target = "principal"
	return e
}

// Unassign takes a role away. Somebody is always Owner of everything, by
// themselves and not by a group.
func (e *Engine) Unassign(ctx context.Context, c Caller, a Assignment) error {
	if err := checkScope(&a.Scope); err != nil {
		return err
	}
	return e.change(ctx, c, c.line(EventAccessTaken, ActionRoles, a.Scope, clip(a.Role)+" from "+clip(a.Principal)), func(tx Tx) error {
		if err := c.Must(ActionRoles, a.Scope); err != nil {
			return err
		}
		all, err := tx.Assignments()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(b Assignment) bool {
			return b.Principal == a.Principal && b.Scope == a.Scope && strings.EqualFold(b.Role, a.Role)
		})
		if i < 0 {
			return Refuse(NotFound, "RoleAssignmentNotFound", "'%s' does not have role '%s' over scope '%s'.", clip(a.Principal), clip(a.Role), a.Scope)
		}
		defined, err := tx.Roles()
		if err != nil {
			return err
		}
		if r, ok := findRole(a.Role, defined); ok { // what is no role any more anybody may clear away
			if err := c.mustCover(r, a.Scope); err != nil {
				return err
			}
		}
		if owners(all) == 1 && owners(all[i:i+1]) == 1 {
			return Refuse(Conflict, "LastOwner", "'%s' is the last Owner of everything. Give that to somebody else first; a group does not count, since it may be empty.", a.Principal)
		}
		return tx.DeleteAssignment(all[i])
	})
}

// TokenInput is a local token as somebody wants it.
type TokenInput struct {
	Principal string        // empty: the caller's own
	Name      string        // what people know the principal by; empty: as the principal says
	Note      string        // what it is for
	Role      string        // bounds the token; empty: all its owner may
	Scope     Scope         // bounds the token; empty: Everywhere
	Valid     time.Duration // zero: 30 days
}

// CreateToken makes a local token, which is shown once. A person may make
// tokens of their own, but not with a token that is itself bounded: a leaked
// one would outlive its revocation. Tokens of others, who are local, need
// ActionRoles at Everywhere and all the rights they give.
func (e *Engine) CreateToken(ctx context.Context, c Caller, in TokenInput) (token string, t Token, err error) {
	if in.Scope != "" {
		if err := checkScope(&in.Scope); err != nil {
			return "", Token{}, err
		}
	}
	principal := cmp.Or(in.Principal, c.ID)
	own := principal == c.ID
	err = e.change(ctx, c, c.line(EventTokenCreated, ActionRoles, Everywhere, "for "+clip(principal)), func(tx Tx) error {
		if c.Limits != nil {
			return errBounded()
		}
		if !own || c.Type != TypeUser {
			if err := c.Must(ActionRoles, Everywhere); err != nil {
				return err
			}
		}
		if err := checkToken(principal, own, in); err != nil {
			return err
		}
		defined, err := tx.Roles()
		if err != nil {
			return err
		}
		if in.Role != "" {
			r, ok := findRole(in.Role, defined)
			if !ok {
				return Refuse(Invalid, "RoleDefinitionDoesNotExist", "There is no role '%s'.", clip(in.Role))
			}
			in.Role = r.Name
		}
		if !own {
			given, err := tx.Assignments(principal)
			if err != nil {
				return err
			}
			for _, right := range ResolveRights(given, defined) {
				if err := c.mustCover(right.Role, right.Scope); err != nil {
					return err
				}
			}
		}
		name := in.Name
		if own && name == "" {
			name = c.Name
		}
		var hash string
		token, hash = NewToken()
		t = Token{
			Hash: hash, ID: tokenID(hash), Principal: principal, Name: cmp.Or(name, strings.TrimPrefix(principal, LocalPrefix)),
			Note: in.Note, Role: in.Role, Scope: in.Scope,
			Created: e.Now(), Expires: e.Now().Add(cmp.Or(in.Valid, tokenValid)),
		}
		return tx.PutToken(t)
	})
	if err != nil {
		return "", Token{}, err
	}
	return token, t, nil
}

// errBounded is the answer to who would see to tokens with a bounded one: that
// is leaked more easily, and must not outlive itself nor end others.
func errBounded() error {
	return Refuse(Forbidden, "AuthorizationFailed", "This token is bounded, and cannot see to tokens. Sign in, or use a token without bounds.")
}

// checkToken refuses what no token can be.
func checkToken(principal string, own bool, in TokenInput) error {
	bad := func(target, format string, args ...any) error {
		e := Refuse(Invalid, "InvalidToken", format, args...)
		e.Target = target
		return e
	}
	printable := func(s string) bool { return len(s) <= maxNote && strings.IndexFunc(s, unprintable) < 0 }
	switch {
	case !own && !localPrincipal.MatchString(principal):
		return bad("principal", "'%s' is not a local principal: local:NAME in lower case. Others sign in where they belong.", clip(principal))
	case !printable(in.Name):
		return bad("name", "The name is longer than %d bytes, or has characters that do not print.", maxNote)
	case !printable(in.Note):
		return bad("note", "The note is longer than %d bytes, or has characters that do not print.", maxNote)
	case in.Valid < 0 || in.Valid > longestToken:
		return bad("valid", "A token is valid for at most %d days.", int(longestToken.Hours()/24))
	}
	return nil
}

// ListTokens lists the caller's own tokens, and everybody's for who may give
// roles at Everywhere. Their hashes stay here.
func (e *Engine) ListTokens(ctx context.Context, c Caller) (tokens []Token, err error) {
	all := c.May(ActionRoles, Everywhere)
	if !all && c.Limits != nil {
		return nil, errBounded()
	}
	err = e.Store.View(ctx, func(tx Tx) error {
		tokens, err = tx.Tokens()
		return err
	})
	tokens = slices.DeleteFunc(tokens, func(t Token) bool { return !all && t.Principal != c.ID })
	for i := range tokens {
		tokens[i].Hash = ""
	}
	return tokens, err
}

// RevokeToken makes a token useless, from the next call with it on. One may
// revoke one's own, and who may give roles at Everywhere any. id is Token.ID.
func (e *Engine) RevokeToken(ctx context.Context, c Caller, id string) error {
	return e.change(ctx, c, c.line(EventTokenRevoked, ActionRoles, Everywhere, clip(id)), func(tx Tx) error {
		anybodys := c.May(ActionRoles, Everywhere)
		if !anybodys && c.Limits != nil {
			return errBounded()
		}
		all, err := tx.Tokens()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(t Token) bool { return t.ID == id && (anybodys || t.Principal == c.ID) })
		switch {
		case i < 0: // the same answer for what is another's
			return Refuse(NotFound, "TokenNotFound", "You have no token '%s'.", clip(id))
		case all[i].Revoked:
			return nil
		}
		all[i].Revoked = true
		return tx.PutToken(all[i])
	})
}
